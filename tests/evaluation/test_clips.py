"""Tasks from the three layouts of data."""

import json
import tarfile
from collections import Counter

import numpy as np
import pytest
import soundfile

from echotts.data.prepare.demo import corpus_path
from echotts.evaluation.clips import RATE_HZ, read_clips, read_tasks


def write(path, level, rate=RATE_HZ):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(rate, level, np.float32), rate, subtype="FLOAT")


def test_the_built_in_corpus_gives_each_held_out_text_a_reference_of_its_speaker():
    tasks, enrolment = read_tasks(corpus_path(), 5)
    assert len(tasks) == 5
    assert all(task.recorded and task.recording.speaker == task.speaker for task in tasks)
    assert {task.speaker for task in tasks} <= {clip.speaker for clip in enrolment}


def test_the_built_in_corpus_has_texts_of_one_to_seven_digits_and_no_held_out_pair_is_trained_on():
    index = json.loads((corpus_path() / "dataset.json").read_text())
    texts = {"train": Counter(), "heldout": Counter(), "reference": Counter()}
    for shard in index["shards"]:
        with tarfile.open(corpus_path() / shard["name"]) as tar:
            about = [json.load(tar.extractfile(member)) for member in tar if member.name.endswith(".json")]
        assert len(about) == shard["samples"]
        assert min(one["duration_s"] for one in about) >= 0.6  # `data prepare` refuses what is shorter than 0.5 s
        texts[shard["split"]].update(one["text"] for one in about)
    lengths = {split: Counter(len(text.split()) for text in found) for split, found in texts.items()}
    assert (lengths["train"][1], lengths["train"][2]) == (10, 80)
    assert (lengths["heldout"][1], lengths["heldout"][2]) == (10, 20)
    assert all(min(counts[n] for n in range(3, 8)) >= 4 for counts in lengths.values())
    assert all(len(text.split()) == 1 for text in texts["train"].keys() & texts["heldout"].keys())
    assert not texts["reference"].keys() & (texts["train"] | texts["heldout"]).keys()


def test_a_table_gives_each_clip_a_reference_of_its_speaker_and_known_voices_from_the_rest(tmp_path):
    rows = []
    for number in range(12):
        write(tmp_path / f"{number}.wav", number / 100)
        rows.append({"audio": f"{number}.wav", "text": f"text {number}", "speaker": "ab"[number % 2]})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tasks, enrolment = read_tasks(tmp_path, 4)
    assert [task.text for task in tasks] == ["text 0", "text 1", "text 2", "text 3"]
    assert all(task.reference.key != task.recording.key for task in tasks)
    assert all(task.reference.speaker == task.recording.speaker for task in tasks)
    assert not {clip.key for clip in enrolment} & {task.key for task in tasks}
    assert {clip.speaker for clip in enrolment} == {"a", "b"}


def test_a_seed_tts_list_with_and_without_recordings_of_the_texts(tmp_path):
    write(tmp_path / "prompts" / "a.wav", 0.1)
    write(tmp_path / "b.wav", 0.2, 2 * RATE_HZ)
    lines = ["k1|what is said|prompts/a.wav|to be spoken", "", "k2|other|prompts/a.wav|too|b.wav"]
    (tmp_path / "meta.lst").write_text("\n".join(lines))
    (first, second), enrolment = read_tasks(tmp_path / "meta.lst", 10)
    assert (first.key, first.text, first.reference.text, first.speaker) == (
        *("k1", "to be spoken", "what is said", "prompts/a.wav"),
    )
    assert first.recording is first.reference and not first.recorded
    assert second.recorded and second.recording.text == "too"
    assert len(second.recording.samples) == RATE_HZ
    assert len(enrolment) == 2


def test_a_folder_of_neither_layout_and_a_missing_split_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset\.json: no such file: --data takes a folder of audio shards"):
        read_tasks(tmp_path, 1)
    with pytest.raises(ValueError, match="lists no shards of the split 'test'"):
        read_clips(corpus_path(), "test")


@pytest.mark.parametrize(
    ("content", "words"),
    [("a|b|c", "line 1: 3 fields"), ("\n", "is empty"), ("a|b|gone.wav|d", "gone.wav")],
)
def test_a_list_that_cannot_be_read_is_one_line_with_the_place(tmp_path, content, words):
    (tmp_path / "meta.lst").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        read_tasks(tmp_path / "meta.lst", 10)
