"""The packaged class table agrees with timm's and torchvision's."""

from optcam_pl.imagenet import imagenet_names, imagenet_wnids


def test_order_and_names_are_those_of_timm_and_torchvision() -> None:
    from timm.data import ImageNetInfo
    from torchvision.models import ResNet50_Weights

    assert list(imagenet_wnids()) == ImageNetInfo("imagenet-1k").label_names()
    assert list(imagenet_names()) == ResNet50_Weights.DEFAULT.meta["categories"]


def test_each_class_is_there_once_and_sorted_by_wnid() -> None:
    assert len(imagenet_wnids()) == len(set(imagenet_names())) == 1000
    assert list(imagenet_wnids()) == sorted(set(imagenet_wnids()))
