"""Runs the training program on the machines of a pod, or as several processes on this one. Standard library only.

`python launch/tpu.py` and `python launch/local.py` are the entry points; they run on Python 3.9 and newer, without the
package's dependencies. What runs on the workers are the scripts in launch/worker/.
"""
