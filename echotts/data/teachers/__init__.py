"""Synthetic speech to train on: text-to-speech systems that say a list of texts in many voices.

| teacher | what it needs | voices |
|---|---|---|
| kokoro | extra `teachers` (Kokoro-82M as int8 ONNX, misaki's lexica) | five styles, and mixes of them |
| flite | the program flite | slt, rms, awb, kal, kal16 |
| festival | the program festival and packages of voices | those installed |
| espeak | extra `teachers` (espeak-ng as a library) | a language and a variant: en-us+f2 |
"""

from echotts.data.teachers.speak import Summary, read_texts, speak
from echotts.data.teachers.teacher import TEACHERS, Teacher, load_teacher

__all__ = ["TEACHERS", "Summary", "Teacher", "load_teacher", "read_texts", "speak"]
