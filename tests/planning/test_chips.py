import jax
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.planning.chips import CHIPS, topology


@pytest.mark.parametrize(
    ("name", "chips"), [("v5e:4x4", 16), ("v5e:8x8", 64), ("v5p:2x2x4", 16), ("h100:8", 8)]
)
def test_a_topology_has_the_chips_of_its_shape(name, chips):
    found = topology(name)
    assert (found.chips, found.chip) == (chips, CHIPS[name.partition(":")[0]])


def test_several_slices_are_as_many_chips_with_a_network_between_them():
    found = topology("2xv5e:4x4")
    assert (found.chips, found.slices, found.slice_name) == (32, 2, "v5e:4x4")
    assert topology("v5e:4x4").slices == 1
    with pytest.raises(UserError, match="how fast slices of v4 talk to each other is not known"):
        topology("2xv4:2x2x4")


@pytest.mark.parametrize(
    "name",
    [
        "0xv5e:4x4",
        "2x:4x4",
        "v5e",
        "v5e:",
        "v5e:4",
        "v5e:4x4x4",
        "v5p:4x4",
        "v9:4x4",
        "v5e:0x4",
        "h100:2x4",
        "",
        "x",
    ],
)
def test_what_is_no_topology_is_one_sentence(name):
    with pytest.raises(UserError, match="--topology is") as error:
        topology(name)
    assert len(str(error.value).splitlines()) == 1


def test_the_devices_at_hand_are_measured():
    found = topology("here")
    assert found.chips == len(jax.devices())
    chip = found.chip
    assert min(chip.flops, chip.memory, chip.memory_speed) > 0 and not chip.is_tpu
