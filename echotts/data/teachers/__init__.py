"""Synthetic training speech: text-to-speech systems (teachers) that speak a list of texts in many voices.

| teacher | requirements | voices |
|---|---|---|
| kokoro | extra `teachers` (Kokoro-82M as int8 ONNX, misaki's lexica) | five styles, and mixes of them |
| flite | the program flite | slt, rms, awb, kal, kal16 |
| festival | the program festival and voice packages | those installed |
| espeak | extra `teachers` (espeak-ng as a library) | a language and a variant: en-us+f2 |
"""

from echotts.data.teachers.speak import Summary, read_texts, speak
from echotts.data.teachers.teacher import TEACHERS, Teacher, load_teacher

__all__ = ["TEACHERS", "Summary", "Teacher", "load_teacher", "read_texts", "speak"]
