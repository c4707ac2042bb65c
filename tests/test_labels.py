"""Class names, label files, and matching a data set's classes to a model's outputs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resnet_onnx.data.datasets import open_dataset
from resnet_onnx.data.labels import (
    cifar10_labels,
    imagenet_labels,
    imagenet_wordnet_ids,
    match_classes,
    read_labels,
)
from runtimes.errors import BadData, FileProblem, UsageError


class TestLists:
    def test_imagenet_order(self) -> None:
        labels, ids = imagenet_labels(), imagenet_wordnet_ids()
        assert len(labels) == len(ids) == len(set(ids)) == 1000
        for index, wordnet_id, label in ((0, "n01440764", "tench"), (207, "n02099601", "golden retriever")):
            assert (ids[index], labels[index]) == (wordnet_id, label)
        assert (ids[999], labels[999]) == ("n15075141", "toilet tissue")

    def test_ids_and_names_stand_for_the_same_classes(self, shared_data: Path) -> None:
        # The photos are called by both: n01440764/n01440764_tench.JPEG.
        photos = open_dataset(shared_data / "imagenet-photos-100.zip")
        order = {wordnet_id: index for index, wordnet_id in enumerate(imagenet_wordnet_ids())}
        labels = imagenet_labels()
        alike = 0
        for index in range(len(photos)):
            wordnet_id, _, name = Path(photos.item_name(index)).stem.partition("_")
            alike += labels[order[wordnet_id]].casefold() == name.replace("_", " ").casefold()
        assert alike >= 90

    def test_cifar10_is_alphabetical(self) -> None:
        assert list(cifar10_labels()) == sorted(cifar10_labels())


class TestFile:
    def test_reads_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "labels.txt"
        path.write_bytes("\ufeffKatze\r\n Hund \nVögel\n\n".encode())
        assert read_labels(str(path)).names == ("Katze", "Hund", "Vögel")

    def test_names(self) -> None:
        assert read_labels("cifar10").names == cifar10_labels()
        assert read_labels("imagenet").names == imagenet_labels()

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            (b"", "the file is empty"),
            (b"\n \n", "the file is empty"),
            (b"a\n\nb\n", "line 2 is empty"),
            (b"a\n\xff\xfe\n", "not UTF-8 text"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, content: bytes, expected: str) -> None:
        path = tmp_path / "labels.txt"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=expected):
            read_labels(str(path))

    def test_no_file(self, tmp_path: Path) -> None:
        for path in (tmp_path / "none.txt", tmp_path):
            with pytest.raises(FileProblem, match="can't be read"):
                read_labels(str(path))


class TestMatching:
    def test_by_name_in_another_order(self) -> None:
        assert match_classes(["cat", "dog"], ["dog", "cat"], 2).tolist() == [1, 0]

    def test_a_data_set_may_hold_some_classes_only(self) -> None:
        assert match_classes(["ship", "cat"], cifar10_labels(), 10).tolist() == [8, 3]

    def test_case_spaces_and_underscores_do_not_matter(self) -> None:
        labels = ["golden retriever", "Tabby-Cat", "tench"]
        assert match_classes(["Golden_Retriever", "tabby cat"], labels, 3).tolist() == [0, 1]

    def test_exact_names_go_first(self) -> None:
        assert match_classes(["a b", "a_b"], ["a_b", "a b"], 2).tolist() == [1, 0]

    def test_imagenet_by_wordnet_id(self, shared_data: Path) -> None:
        photos = open_dataset(shared_data / "imagenet-photos-100.zip")
        expected = [imagenet_wordnet_ids().index(name) for name in photos.classes]
        for labels in (imagenet_labels(), None, [label.upper() for label in imagenet_labels()]):
            assert match_classes(photos.classes, labels, 1000).tolist() == expected
        assert expected[:2] == [0, 10]

    def test_wordnet_ids_say_nothing_of_another_thousand_classes(self) -> None:
        with pytest.raises(BadData, match=r"1 of 1 classes .* are not among the model's 1000 labels: n01440764"):
            match_classes(["n01440764"], [f"product {i}" for i in range(1000)], 1000)

    def test_by_order_only_when_no_name_matches_and_counts_are_equal(self) -> None:
        assert match_classes(["0", "1", "2"], ["zero", "one", "two"], 3).tolist() == [0, 1, 2]
        assert match_classes(["0", "1", "2"], None, 3).tolist() == [0, 1, 2]
        with pytest.raises(BadData, match=r"2 of 3 classes of the data set are not among .*: 1, 2; the model's begin"):
            match_classes(["zero", "1", "2"], ["zero", "one", "two"], 3)

    def test_numbers_mean_the_outputs_of_that_number(self) -> None:
        names = sorted(str(number) for number in range(12))  # as folders are: 0, 1, 10, 11, 2
        assert match_classes(names, [f"thing {i}" for i in range(12)], 12).tolist() == [int(name) for name in names]

    def test_no_match(self) -> None:
        with pytest.raises(BadData, match=r"cat, dog; the model's begin airplane"):
            match_classes(["cat", "dog"], ["airplane", "ship", "truck"], 3)
        with pytest.raises(BadData, match=r"2 classes \(cat, dog\), the model 10 outputs without labels") as refused:
            match_classes(["cat", "dog"], None, 10)
        assert "--labels" in (refused.value.fix or "")

    def test_long_lists_are_cut(self) -> None:
        with pytest.raises(BadData, match=r"x0, x1, x2, x3, x4 and 25 more"):
            match_classes([f"x{i}" for i in range(30)], None, 10)

    def test_two_classes_on_one_output(self) -> None:
        with pytest.raises(BadData, match=r"Cat and cat of the data set match the same output"):
            match_classes(["Cat", "cat"], ["CAT", "dog"], 2)

    def test_two_labels_alike_are_not_guessed_between(self) -> None:
        with pytest.raises(BadData, match="1 of 2"):
            match_classes(["crane", "dog"], ["Crane", "CRANE", "dog"], 3)

    def test_labels_and_outputs_must_be_as_many(self) -> None:
        with pytest.raises(UsageError, match="10 outputs and 2 labels"):
            match_classes(["a", "b"], ["a", "b"], 10)

    def test_no_classes(self) -> None:
        with pytest.raises(BadData, match="no classes"):
            match_classes([], ["a"], 1)

    @given(st.lists(st.text(min_size=1, max_size=6), unique=True, min_size=1, max_size=12))
    def test_a_shuffled_subset_is_always_found_exactly(self, labels: list[str]) -> None:
        wanted = sorted(labels)[: max(1, len(labels) // 2)]
        found = match_classes(wanted, labels, len(labels))
        assert [labels[index] for index in found] == wanted
