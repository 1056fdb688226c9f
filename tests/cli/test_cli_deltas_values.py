from __future__ import annotations

import sparsetune as st


def test_compress_and_what_it_costs(sparsetune, refused, deltas, tmp_path):
    small = tmp_path / "small.safetensors"
    lines = sparsetune("compress", deltas[0], "-o", small).out.splitlines()
    assert lines[0].startswith(f"{small}  (")
    assert lines[-1] == f"next: sparsetune eval {deltas[0]} {small}"
    value = sparsetune("compress", deltas[0], "-o", small, "--dtype", "bf16", "--json").json
    assert value["bytes"] == small.stat().st_size < 0.56 * value["bytes_before"]
    assert sparsetune("verify", small, "--json").json["intact"]
    found = sparsetune("eval", deltas[0], small, "--json").json["members"]
    assert abs(found[0]["top1"] - found[1]["top1"]) < 0.05
    assert "int4' is not one of bf16, fp16, int8" in refused(
        "compress", deltas[0], "-o", small, "--dtype", "int4"
    )
    assert "is not a file" in refused("compress", tmp_path / "none", "-o", small)


def test_diff(sparsetune, deltas):
    lines = sparsetune("diff", *deltas).out.splitlines()
    assert lines[0].split() == ["tensor", "values", "that", "differ", "largest", "relative"]
    assert len(lines) == 1 + len(st.inspect(deltas[0]).entries)
    assert {row["differing"] for row in sparsetune("diff", deltas[0], deltas[0], "--json").json} == {0}


def test_soup(sparsetune, refused, deltas, tmp_path):
    out = tmp_path / "soup.safetensors"
    assert sparsetune("soup", *deltas, "-o", out, "--weights", "1,3").out.startswith(f"{out}  (")
    assert st.inspect(out).training["weights"] == [0.25, 0.75]
    assert "weights 'a,b' are not numbers" in refused("soup", *deltas, "-o", out, "--weights", "a,b")


def test_stack(sparsetune, refused, deltas, tmp_path):
    assert "so they do not stack" in refused("stack", *deltas, "-o", tmp_path / "both.safetensors")
    files = []
    for block in ("blocks.0", "blocks.1"):
        files.append(tmp_path / f"{block}.safetensors")
        learn = st.Learn(fraction=1.0, layers=[block], norm=False, head=False)
        st.save(st.adapt_(st.create("test_vit", num_classes=10), learn), files[-1])
    out = tmp_path / "both.safetensors"
    assert sparsetune("stack", *files, "-o", out).out.rstrip().endswith(", 2 deltas in one)")
    assert sparsetune("stack", *files, "-o", out, "--json").json["bytes"] == out.stat().st_size


def test_bundle_and_eval_of_it(sparsetune, refused, deltas, tmp_path):
    out = tmp_path / "all.safetensors"
    assert (
        sparsetune("bundle", deltas[0], f"other={deltas[1]}", "-o", out).out.rstrip().endswith("; 0, other)")
    )
    value = sparsetune("eval", out, "--test-limit", 50, "--json").json
    apart = sparsetune("eval", *deltas, "--test-limit", 50, "--json").json
    assert [member["delta"] for member in value["members"]] == [f"{out}: 0", f"{out}: other"]
    assert value["ensemble"] == apart["ensemble"]
    assert "same name; say NAME=PATH" in refused("bundle", deltas[0], deltas[0], "-o", out)
