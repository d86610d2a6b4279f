"""Files, folders and class folders are found in one order everywhere, and what does not fit is told by name."""

from pathlib import Path

import pytest
from PIL import Image

from optcam_pl.data import ChestXRay, ImageFolder, ImagePaths, Kvasir
from optcam_pl.imagenet import imagenet_names, imagenet_wnids


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(root / name, "PNG")
    return root


def ids(data: ImagePaths | ImageFolder) -> list[str]:
    return [entry.id for entry in data.table.entries]


def targets(data: ImageFolder) -> dict[str, int]:
    return {entry.id: entry.target for entry in data.table.entries}


# ---------------------------------------------------------------------------------------------------------- paths


def test_a_single_file_is_named_by_its_name(tmp_path: Path) -> None:
    put(tmp_path, "photo.jpg")
    data = ImagePaths(str(tmp_path / "photo.jpg"), size=4)
    assert ids(data) == ["photo.jpg"]
    assert data.name == "images"
    assert next(iter(data.predict_dataloader()))["target"].tolist() == [-1] * 8


def test_files_folders_and_patterns_are_named_from_their_common_root(tmp_path: Path) -> None:
    put(tmp_path, "a/2.png", "a/10.PNG", "a/deep/x.webp", "b/y.jpg", "c/z1.png", "c/z2.png", "a/.hidden.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    (tmp_path / "c" / "z3.txt").write_text("no image")
    data = ImagePaths([str(tmp_path / "c" / "z*"), str(tmp_path / "a"), str(tmp_path / "b" / "y.jpg")])
    assert ids(data) == ["c/z1.png", "c/z2.png", "a/10.PNG", "a/2.png", "a/deep/x.webp", "b/y.jpg"]
    assert ImagePaths(str(tmp_path / "a")).name == "a"


def test_an_image_named_twice_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a/x.png", "a/y.png")
    monkeypatch.chdir(tmp_path)
    assert ids(ImagePaths(["a/y.png", "a", "a/../a/x.png", str(tmp_path / "a" / "*.png")])) == ["y.png", "x.png"]


def test_odd_names_are_names_and_not_patterns(tmp_path: Path) -> None:
    put(tmp_path, "with space.png", "[1].png", "ü\n<b>.png", "1.png")
    assert ids(ImagePaths(str(tmp_path / "[1].png"))) == ["[1].png"]
    assert set(ids(ImagePaths(str(tmp_path)))) == {"with space.png", "[1].png", "ü\n<b>.png", "1.png"}


def test_a_file_named_outright_is_taken_whatever_its_ending(tmp_path: Path) -> None:
    put(tmp_path, "photo.jpg").joinpath("photo.jpg").rename(tmp_path / "photo.upload")
    assert ids(ImagePaths(str(tmp_path / "photo.upload"))) == ["photo.upload"]


def test_missing_paths_are_named_at_once(tmp_path: Path) -> None:
    for path in ("nothing.jpg", "nothing/", "none*.jpg"):
        with pytest.raises(FileNotFoundError, match=r"Expected `paths` to be .*(nothing|none)"):
            ImagePaths([str(tmp_path / path)])
    with pytest.raises(ValueError, match="`paths`"):
        ImagePaths([])


def test_a_folder_without_images_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"found no image: looked for files that end in \.avif.* in `paths`: .*"):
        ImagePaths(str(tmp_path)).setup()


# -------------------------------------------------------------------------------------------------------- folders


def test_some_of_imagenets_folders_have_imagenets_indices(tmp_path: Path) -> None:
    put(tmp_path, "n02123045/b.png", "n02123045/a.png", "n01440764/x/deep.png", "n02123045/.hidden.png")
    for classes in (None, "imagenet"):
        data = ImageFolder(str(tmp_path), classes)
        assert targets(data) == {"n01440764/x/deep.png": 0, "n02123045/a.png": 281, "n02123045/b.png": 281}
        assert data.class_names == imagenet_names()
    assert data.name == tmp_path.name


def test_folders_may_have_imagenets_class_names(tmp_path: Path) -> None:
    put(tmp_path, "tabby/a.png", "Great White_Shark/a.png", "n01443537/a.png")
    expected = {"Great White_Shark/a.png": 2, "n01443537/a.png": 1, "tabby/a.png": 281}
    assert targets(ImageFolder(str(tmp_path), "imagenet")) == expected


def test_other_folders_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    put(tmp_path, "b/1.png", "a/1.png", "B/1.png", "n01440764/1.png", ".git/1.png")
    data = ImageFolder(str(tmp_path))
    assert data.class_names == ("B", "a", "b", "n01440764")
    assert targets(data) == {"B/1.png": 0, "a/1.png": 1, "b/1.png": 2, "n01440764/1.png": 3}


def test_two_folders_of_one_class_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "tabby/1.png", "n02123045/1.png")
    with pytest.raises(ValueError, match="'tabby' is the second one of the class 'tabby'"):
        ImageFolder(str(tmp_path), "imagenet").setup()


def test_a_class_list_or_file_numbers_the_folders(tmp_path: Path) -> None:
    put(tmp_path / "data", "cat/1.png", "dog/1.png")
    (tmp_path / "classes.txt").write_text("bird\ndog\ncat\n")
    for classes in (["bird", "dog", "cat"], str(tmp_path / "classes.txt")):
        data = ImageFolder(str(tmp_path / "data"), classes)
        assert data.class_names == ("bird", "dog", "cat")
        assert targets(data) == {"cat/1.png": 2, "dog/1.png": 1}


def test_an_unknown_folder_is_told_with_the_nearest_names(tmp_path: Path) -> None:
    put(tmp_path, "tabbi/1.png")
    with pytest.raises(ValueError, match=r"'tabbi' is none of the 1000 classes; the nearest are 'tabby'"):
        ImageFolder(str(tmp_path), "imagenet").setup()


def test_wrong_class_lists_are_refused(tmp_path: Path) -> None:
    for classes, message in (([], "none"), (["a", "a"], "'a'"), (["a", ""], "''")):
        with pytest.raises(ValueError, match=message):
            ImageFolder(str(tmp_path), classes)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ImageFolder(str(tmp_path), "nowhere.txt")


def test_a_missing_root_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"Expected `root` to be a folder, but there is no folder .*nothing"):
        ImageFolder(str(tmp_path / "nothing"))
    put(tmp_path, "file.png")
    with pytest.raises(NotADirectoryError, match="Expected `root` to be a folder, but .* is a file"):
        ImageFolder(str(tmp_path / "file.png"))


def test_a_root_without_class_folders_says_so(tmp_path: Path) -> None:
    put(tmp_path, "stray.png")
    with pytest.raises(ValueError, match="in the class folders of"):
        ImageFolder(str(tmp_path)).setup()


def test_links_out_of_the_root_are_refused_unless_allowed(tmp_path: Path) -> None:
    put(tmp_path, "root/a/1.png", "root/b/1.png", "secret/2.png")
    (tmp_path / "root" / "a" / "inside.png").symlink_to("../b/1.png")
    root = str(tmp_path / "root")
    assert "a/inside.png" in targets(ImageFolder(root))
    for link, target in (("root/a/2.png", "secret/2.png"), ("root/c", "secret")):
        (tmp_path / link).symlink_to(tmp_path / target)
        with pytest.raises(ValueError, match="leads out of the data's root"):
            ImageFolder(root).setup()
        assert len(targets(ImageFolder(root, allow_outside=True))) == 4
        (tmp_path / link).unlink()


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/1.png")
    (tmp_path / "a" / "up").symlink_to("..")
    with pytest.raises(ValueError, match="round in a circle"):
        ImageFolder(str(tmp_path)).setup()


def test_a_link_as_root_and_a_broken_link_inside(tmp_path: Path) -> None:
    put(tmp_path, "real/a/1.png")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real" / "a" / "gone.png").symlink_to("nothing.png")
    data = ImageFolder(str(tmp_path / "link"), on_error="record", size=4)
    batch = next(iter(data.test_dataloader()))
    assert batch["id"][:2] == ["a/1.png", "a/gone.png"]
    assert batch["error"][:2] == ["", "there is no such file"]


def test_every_class_of_imagenet_is_found_by_wnid_and_by_name(tmp_path: Path) -> None:
    from optcam_pl.data.folders import match_folders

    assert list(match_folders(imagenet_wnids(), imagenet_names(), imagenet_wnids()).values()) == list(range(1000))
    for names in (imagenet_names(), [name.replace(" ", "_") for name in imagenet_names()]):
        assert list(match_folders(names, imagenet_names(), imagenet_wnids()).values()) == list(range(1000))
    with pytest.raises(ValueError, match=r"'CARDIGAN' is none .* 'Cardigan'"):  # a dog or a garment?
        match_folders(["CARDIGAN"], imagenet_names())


# --------------------------------------------------------------------------------------------------------- splits


def split_ids(data: ImageFolder) -> list[set[str]]:
    return [{entry.id for entry in found} for found in (data.training_entries("train"), data.training_entries("val"))]


def test_a_split_that_has_folders_is_taken_from_them(tmp_path: Path) -> None:
    put(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "val", "test") for name in ("b", "a")))
    data = ImageFolder(str(tmp_path), split="test")
    assert targets(data) == {"test/a/1.png": 0, "test/b/1.png": 1}
    assert split_ids(data) == [{"train/a/1.png", "train/b/1.png"}, {"val/a/1.png", "val/b/1.png"}]
    with pytest.raises(ValueError, match=r"holds a split, \['test', 'train', 'val'\]: choose"):
        ImageFolder(str(tmp_path)).setup()
    with pytest.raises(ValueError, match="`split` to be given to train"):
        ImageFolder(str(tmp_path / "train")).training_entries("train")
    with pytest.raises(ValueError, match="'train', 'val', 'test' or None, but got 'valid'"):
        ImageFolder(str(tmp_path), split="valid")


def test_a_split_that_has_none_is_drawn_from_every_class_by_seed_and_stored(tmp_path: Path) -> None:
    root = put(tmp_path / "data", *(f"{name}/{i}.png" for name in ("a", "b") for i in range(16)))
    data = ImageFolder(str(root), split="test")
    test, (train, val) = set(ids(data)), split_ids(data)
    assert [len(part) for part in (train, val, test)] == [24, 4, 4]
    assert len(train | val | test) == 32
    assert sorted(name[0] for name in test) == sorted(name[0] for name in val) == ["a", "a", "b", "b"]
    stored = (root / ".optcam_pl" / "split_0.json").read_text()
    assert all(f'"{name}":"test"' in stored for name in test)
    elsewhere = put(tmp_path / "copy", *(f"{name}/{i}.png" for name in ("a", "b") for i in range(16)))
    assert set(ids(ImageFolder(str(elsewhere), split="test"))) == test
    assert set(ids(ImageFolder(str(elsewhere), split="test", split_seed=1))) != test
    (root / "a" / "0.png").unlink()  # the others stay where they are
    assert set(ids(ImageFolder(str(root), split="test"))) == test - {"a/0.png"}
    put(root, "a/new.png")  # now the list does not name every image
    assert len(ids(ImageFolder(str(root), split="test"))) == 4


def test_chest_x_ray_is_read_as_it_is_downloaded(tmp_path: Path) -> None:
    names = [
        f"chest_xray/{split}/{name}/1.jpeg" for split in ("train", "val", "test") for name in ("NORMAL", "PNEUMONIA")
    ]
    put(tmp_path, *names, "chest_xray/__MACOSX/._x.jpeg")
    for root in (tmp_path, tmp_path / "chest_xray"):
        data = ChestXRay(str(root))
        assert targets(data) == {"test/NORMAL/1.jpeg": 0, "test/PNEUMONIA/1.jpeg": 1}
        assert (data.name, data.class_names) == ("chest_xray", ("NORMAL", "PNEUMONIA"))
        assert split_ids(data)[0] == {"train/NORMAL/1.jpeg", "train/PNEUMONIA/1.jpeg"}


def test_kvasir_is_split_into_six_one_and_one_eighth(tmp_path: Path) -> None:
    put(tmp_path / "kvasir-dataset-v2", *(f"{name}/{i}.jpg" for name in Kvasir.CLASSES for i in range(8)))
    data = Kvasir(str(tmp_path))
    assert (data.name, data.class_names) == ("kvasir", Kvasir.CLASSES)
    assert [len(part) for part in (*split_ids(data), ids(data))] == [48, 8, 8]
    assert sorted(targets(data).values()) == list(range(8))


# ------------------------------------------------------------------------------------- what lies beside the classes


def test_what_file_managers_put_beside_classes_is_no_class_and_no_image(tmp_path: Path) -> None:
    put(tmp_path, "b/1.png", "c/1.png", "c/._1.png", "c/@eaDir/1.png/thumb.jpg")
    expected = {"b/1.png": 0, "c/1.png": 1}
    assert targets(ImageFolder(str(tmp_path))) == expected
    folders = ("__MACOSX/b", "@eaDir", ".ipynb_checkpoints", "$RECYCLE.BIN", "lost+found", "#recycle", "__pycache__")
    put(tmp_path, *(f"{folder}/._1.jpg" for folder in folders), *(f"{folder}/1.jpg" for folder in folders))
    (tmp_path / ".DS_Store").write_bytes(b"")
    (tmp_path / "b" / "Thumbs.db").write_bytes(b"")
    for classes in (None, ["b", "c"]):
        data = ImageFolder(str(tmp_path), classes)
        assert targets(data) == expected
        assert data.class_names == ("b", "c")
    assert ids(ImagePaths(str(tmp_path))) == list(expected)
    assert ids(ImagePaths(str(tmp_path / "c" / "*"))) == ["1.png"]
    assert ids(ImagePaths(str(tmp_path / "**" / "*.*g"))) == list(expected)
    assert ids(ImagePaths(str(tmp_path / "@eaDir" / "*"))) == ["1.jpg"]  # where it is asked for


def test_folders_without_images_are_no_classes_and_are_told(tmp_path: Path) -> None:
    put(tmp_path, "cats/1.png", "dogs/deep/1.png")
    (tmp_path / "annotations" / "xml").mkdir(parents=True)
    (tmp_path / "annotations" / "xml" / "1.xml").write_text("<annotation/>")
    (tmp_path / "birds").mkdir()
    data = ImageFolder(str(tmp_path))
    with pytest.warns(UserWarning, match="hold no image and are no classes: annotations, birds. If they are, list all"):
        assert data.class_names == ("cats", "dogs")
    assert targets(data) == {"cats/1.png": 0, "dogs/deep/1.png": 1}


def test_a_listed_class_stays_one_without_images_and_is_told(tmp_path: Path) -> None:
    put(tmp_path, "cats/1.png", "dogs/1.png")
    (tmp_path / "Birds").mkdir()
    (tmp_path / "annotations").mkdir()
    data = ImageFolder(str(tmp_path), ["birds", "cats", "dogs"])
    with pytest.warns(UserWarning, match="These classes have no image in .* as their folders are empty: Birds"):
        assert targets(data) == {"cats/1.png": 1, "dogs/1.png": 2}
    assert data.class_names == ("birds", "cats", "dogs")


def test_a_class_without_images_in_one_part_of_a_split_is_one(tmp_path: Path) -> None:
    put(tmp_path, "train/b/1.png", "val/a/1.png", "test/a/1.png", "test/b/1.png")
    (tmp_path / "train" / "a").mkdir()
    assert targets(ImageFolder(str(tmp_path), split="test")) == {"test/a/1.png": 0, "test/b/1.png": 1}


def test_a_root_one_level_too_deep_or_too_shallow_is_told_the_right_one(tmp_path: Path) -> None:
    put(tmp_path, "pets/cats/1.png", "pets/dogs/1.png")
    with pytest.raises(ValueError, match="its only folder holds them: cats, dogs. Give '.*/pets' as `root`"):
        ImageFolder(str(tmp_path)).setup()
    with pytest.raises(ValueError, match="'pets' is none of the 2 classes.* folders of '.*/pets': give it as `root`"):
        ImageFolder(str(tmp_path), ["dogs", "cats"]).setup()
    message = "found no image.* which holds images itself: .* give its parent folder, '.*/pets'; .* use ImagePaths"
    for classes in (None, ["dogs", "cats"]):
        with pytest.raises(ValueError, match=message):
            ImageFolder(str(tmp_path / "pets" / "cats"), classes).setup()
    assert targets(ImageFolder(str(tmp_path), ["pets"])) == {"pets/cats/1.png": 0, "pets/dogs/1.png": 0}


@pytest.mark.parametrize("names", [("train", "valid"), ("training", "validation"), ("test", "val")])
def test_parts_of_a_split_are_no_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    put(tmp_path, *(f"{name}/a/1.png" for name in names))
    with pytest.raises(ValueError, match=r"holds a split, .*named train, val and test; otherwise give one"):
        ImageFolder(str(tmp_path)).setup()


def test_hyphens_are_spaces_too(tmp_path: Path) -> None:
    put(tmp_path, "sulphur crested-cockatoo/1.png")
    assert targets(ImageFolder(str(tmp_path), "imagenet")) == {"sulphur crested-cockatoo/1.png": 89}


def test_a_class_list_in_another_encoding_is_named(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("Käfer\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"names\.txt' to be written in utf-8, but it is not: byte 0xE4 in line 1"):
        ImageFolder(str(tmp_path), str(tmp_path / "names.txt"))


def test_tilde_and_variables_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PHOTOS", str(tmp_path / "pets"))
    put(tmp_path, "pets/cats/1.png", "pets/dogs/1.png")
    expected = ["cats/1.png", "dogs/1.png"]
    for root in ("~/pets", "$PHOTOS", "${HOME}/pets"):
        assert ids(ImageFolder(root)) == ids(ImagePaths(root)) == expected
        assert ImageFolder(root).name == ImagePaths(root).name == "pets"
    assert ids(ImagePaths(["$PHOTOS/cats", "~/pets/d*/*.png"])) == expected
    with pytest.raises(FileNotFoundError, match=r"no folder '~/nothing' \('.*/nothing'\)"):
        ImageFolder("~/nothing")
    put(tmp_path, "chest_xray/test/NORMAL/1.png", *(f"kvasir-dataset-v2/{name}/1.png" for name in Kvasir.CLASSES))
    assert ids(ChestXRay("$HOME")) == ["test/NORMAL/1.png"]
    assert Kvasir("~").root == tmp_path / "kvasir-dataset-v2"


@pytest.mark.parametrize("parts", [("val",), ("val", "test")])
def test_a_part_of_a_split_without_training_images_has_the_classes_of_all_parts(
    tmp_path: Path, parts: tuple[str, ...]
) -> None:
    put(tmp_path, *(f"{part}/{name}/1.png" for part in parts for name in ("b", part)), "val/a/1.png")
    data = ImageFolder(str(tmp_path), split="val")
    assert targets(data) == {"val/a/1.png": 0, "val/b/1.png": 1, "val/val/1.png": len(parts) + 1}
    assert data.class_names == ("a", "b", *sorted(parts))


def test_images_beside_the_class_folders_are_named(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "b/1.png", "stray.png", "other.png")
    with pytest.warns(UserWarning, match="2 images lie in .* itself, such as 'other.png'. They belong to no class"):
        assert len(targets(ImageFolder(str(tmp_path)))) == 2


def test_links_out_of_a_folder_of_any_images_can_be_allowed(tmp_path: Path) -> None:
    put(tmp_path, "far/1.png", "links/own.png")
    (tmp_path / "links" / "2.png").symlink_to(tmp_path / "far" / "1.png")
    with pytest.raises(ValueError, match="`allow_outside: true` permits that"):
        ImagePaths(str(tmp_path / "links")).entries()
    for path in ("links", "l*"):
        data = ImagePaths(str(tmp_path / path), allow_outside=True)
        assert [entry.id for entry in data.entries()] == ["2.png", "own.png"]
