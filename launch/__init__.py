"""Runs the training program on the machines of a pod, or in several processes on this one. Standard library only.

`python launch/tpu.py` and `python launch/local.py` are the entry points; they run on Python 3.9 or newer, without the
package's dependencies. The scripts in launch/worker/ run on the workers.
"""
