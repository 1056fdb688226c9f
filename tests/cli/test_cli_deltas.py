from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import sparsetune as st


def test_eval_of_one(sparsetune, deltas):
    result = sparsetune("eval", deltas[0], "--test-limit", 50)
    lines = result.out.splitlines()
    assert lines[0] == "50 test pictures of digits"
    assert lines[1].split() == ["delta", "top-1", "top-5", "NLL", "Brier", "ECE", "aECE", "ECE", "at", "T"]
    assert lines[2].split()[0] == str(deltas[0])  # in one piece, however long
    assert len(lines) == 3
    trained = st.inspect(deltas[0]).training["result"]
    found = sparsetune("eval", deltas[0], "--test-limit", 50, "--data", "digits", "--json").json
    assert found["members"][0]["top1"] == trained["test_top1"]
    assert found["members"][0]["nll"] == pytest.approx(trained["test_loss"], rel=1e-5)
    assert "ensemble" not in found


def test_eval_of_several_and_their_ensemble(sparsetune, deltas):
    human = sparsetune("eval", *deltas).out.splitlines()
    assert human[0] == "359 test pictures of digits"
    assert [line.split()[0] for line in human[1:]] == ["delta", *map(str, deltas), "ensemble", "mutual"]
    assert len({len(line) for line in human[1:5]}) == 1
    value = sparsetune("eval", *deltas, "--json", "-b", 7, "-j", 1).json
    data = st.open_data("digits")
    x = torch.stack([data.preprocessing.apply(data.test[i][0]) for i in range(len(data.test))])
    with torch.no_grad():
        p = torch.stack([st.load(path)(x).double().softmax(1) for path in deltas])
    right = (p.argmax(2) == data.test.labels).double().mean(1)
    assert [member["top1"] for member in value["members"]] == right.tolist()
    together = (p.mean(0).argmax(1) == data.test.labels).double().mean().item()
    assert value["ensemble"]["top1"] == together
    differing = (p[0].argmax(1) != p[1].argmax(1)).double().mean().item()
    assert value["ensemble"]["disagreement"] == pytest.approx(differing)
    assert value["ensemble"]["mutual_information"] > 0
    assert value["pictures"] == 359


def test_eval_against_other_things(sparsetune, deltas, pictures):
    human = sparsetune("eval", *deltas, "--test-limit", 50, "--ood", pictures).out.splitlines()
    assert human[0].startswith("50 test pictures of digits, told from ")
    assert human[1].split()[-3:] == ["AUROC", "AUPR", "FPR95"]
    value = sparsetune("eval", *deltas, "--test-limit", 50, "--ood", pictures, "--json").json
    for each in (*value["members"], value["ensemble"]):
        assert 0 <= each["ood"]["auroc"] <= 1
        assert each["calibrated"]["top1"] == each["top1"]


def test_predict_names_pictures(sparsetune, deltas, pictures):
    images = [pictures / "class 3" / "no 0.jpg", pictures / "class 4" / "no 1.png"]
    lines = sparsetune("predict", deltas[0], *images, "--top", 2).out.splitlines()
    assert [lines[0], lines[3]] == [str(image) for image in images]
    assert all(re.fullmatch(r" +\d+\.\d\d%  \d", line) for line in (*lines[1:3], *lines[4:6]))
    value = sparsetune("predict", deltas[0], *images, "--json", "--top", 99).json
    assert [entry["image"] for entry in value] == [str(image) for image in images]
    net, preprocessing = st.load(deltas[0]), st.inspect(deltas[0]).preprocessing
    for entry, image in zip(value, images, strict=True):
        with Image.open(image) as opened, torch.no_grad():
            p = net(preprocessing.apply(opened)[None]).softmax(1)[0]
        found = {ranked["name"]: ranked["probability"] for ranked in entry["classes"]}
        assert found == pytest.approx({str(i): p[i].item() for i in range(10)}, abs=1e-6)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert sum(found.values()) == pytest.approx(1)


def test_info_tells_all(sparsetune, deltas):
    lines = sparsetune("info", deltas[0]).out.splitlines()
    fields = {line[: line.index("  ")]: line[line.index("  ") :].strip() for line in lines}
    assert fields["model"] == "timm test_resnet, 10 classes"
    assert fields["backbone"] == "seed 0"
    assert fields["learned"] == "fraction 0.25 along out, norm, head"
    assert fields["classes"] == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
    assert fields["pictures"].startswith("3x8x8, mean (0.3057,")
    assert re.fullmatch(r"[\d.]+% on digits", fields["test accuracy"])
    value = sparsetune("info", deltas[0], "--json").json
    assert value["file_bytes"] == Path(deltas[0]).stat().st_size
    assert value["model"]["name"] == "test_resnet"
    learned = [torch.Size(t["shape"]).numel() for t in value["tensors"]]
    assert sum(learned) > 95_702
    assert {t["dtype"] for t in value["tensors"]} == {"float32", "int64"}


def test_verify(sparsetune, deltas, refused):
    assert "intact (" in sparsetune("verify", deltas[0]).out
    value = sparsetune("verify", deltas[0], "--json").json
    assert value == {
        "delta": str(deltas[0]),
        "intact": True,
        "fingerprint": st.inspect(deltas[0]).fingerprint,
    }


@pytest.mark.parametrize("where", [0.02, 0.1, 0.3, 0.5, 0.9, 0.999])
def test_a_flipped_bit_is_found(sparsetune, deltas, refused, where):
    damaged = bytearray(deltas[0].read_bytes())
    damaged[int(where * len(damaged))] ^= 4
    Path("d.safetensors").write_bytes(damaged)
    refused("verify", "d.safetensors", code=1)
    value = sparsetune("verify", "d.safetensors", "--json", code=1).json
    assert value["intact"] is False
    assert value["reason"]
    refused("eval", "d.safetensors")
    refused("merge", "d.safetensors", "-o", "m.safetensors")
    assert not Path("m.safetensors").exists()


@pytest.mark.parametrize("length", [0, 1, 7, 100, 3000, -1])
def test_a_cut_off_file_is_found(deltas, refused, length):
    Path("d.safetensors").write_bytes(deltas[0].read_bytes()[:length])
    for words in (["eval"], ["info"], ["merge", "-o", "m.safetensors"], ["verify"]):
        refused(words[0], "d.safetensors", *words[1:], code=1 if words == ["verify"] else 2)


def test_merge_gives_a_plain_checkpoint(sparsetune, deltas):
    out = sparsetune("merge", deltas[0], "-o", "new/whole.safetensors").out
    assert out.startswith("new/whole.safetensors  (1.4")
    assert "timm: test_resnet, num_classes=10" in out
    plain = timm.create_model("test_resnet", num_classes=10)
    plain.load_state_dict(load_file("new/whole.safetensors"), strict=True)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(plain.eval()(x), st.load(deltas[0])(x))
    value = sparsetune("merge", deltas[0], "-o", "b.safetensors", "--json").json
    assert value["bytes"] == Path("b.safetensors").stat().st_size
    assert value["tensors"] == len(plain.state_dict())
    assert Path("b.safetensors").read_bytes() == Path("new/whole.safetensors").read_bytes()
    same = timm.create_model("test_resnet", num_classes=10, checkpoint_path="b.safetensors")
    with torch.no_grad():
        assert torch.equal(same.eval()(x), st.load(deltas[0])(x))


def test_merge_spares_the_delta(deltas, refused):
    before = deltas[0].read_bytes()
    assert "is the delta itself" in refused("merge", deltas[0], "-o", deltas[0])
    assert "does not end in .safetensors" in refused("merge", deltas[0], "-o", "m.pt")
    assert deltas[0].read_bytes() == before


def test_a_backbone_file_that_is_missing_or_another(sparsetune, refused):
    for seed in (7, 8):
        net = st.create("test_resnet", num_classes=10, seed=seed)
        save_file(net.state_dict(), f"w{seed}.safetensors")
    limits = "--model test_resnet --fraction 0.1 --train-limit 20 --test-limit 10 --epochs 1"
    sparsetune(f"fit {limits}", "--init-from", "w7.safetensors", "--out", "r")
    delta = "r/delta.safetensors"
    assert sparsetune("verify", delta, "--json").json["intact"]
    Path("far").mkdir()
    shutil.move("w7.safetensors", "far")
    assert "which is not at hand; pass its path as backbone (--backbone" in refused("eval", delta)
    assert "but w8.safetensors gives" in refused("eval", delta, "--backbone", "w8.safetensors")
    assert "which is not at hand" in refused("eval", delta, "--backbone", "nowhere.safetensors")
    refused("verify", delta, code=3)
    assert sparsetune("verify", delta, "--json", code=3).json["intact"] is None
    sparsetune("verify", delta, "--backbone", "far/w7.safetensors")
    sparsetune("merge", delta, "--backbone", "far/w7.safetensors", "-o", "m.safetensors")


def test_other_classes_are_refused(sparsetune, refused, deltas, pictures):
    assert "knows 10 classes (0, 1, 2, …), but my [red] pictures has 2 (class 3, class 4, …)" in refused(
        "eval", deltas[0], "--data", pictures
    )
    net = st.adapt_(st.create("test_resnet", num_classes=4), st.Learn(fraction=0.1))
    st.save(net, "nameless.safetensors")
    assert "knows 4 classes, but digits has 10" in refused("eval", "nameless.safetensors", "--data", "digits")
    assert "pass --data" in refused("eval", "nameless.safetensors")
    assert "does not say how pictures are prepared" in refused("predict", "nameless.safetensors", "x.png")
