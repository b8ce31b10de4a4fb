"""The shipped store is golden data: it freezes the format, and the quantiser with it."""

import filecmp

from flashmoe.store.convert import convert
from flashmoe.store.reader import locate
from flashmoe.store.verify import verify
from tests.laws.sources import ROOT

CHECKPOINT = ROOT / "models" / "austen-moe"


def test_converting_the_published_checkpoint_gives_the_shipped_store_byte_for_byte(tmp_path):
    convert(CHECKPOINT, tmp_path / "demo", bits=4)
    shipped, made = locate("demo"), tmp_path / "demo"
    names = sorted(path.name for path in shipped.iterdir())
    assert names == sorted(path.name for path in made.iterdir())
    same, different, errors = filecmp.cmpfiles(shipped, made, names, shallow=False)
    assert (different, errors) == ([], []) and same == names


def test_the_shipped_store_is_whole_and_small():
    report = verify(locate("demo"), against=CHECKPOINT)
    assert not report.faults and report.records_checked == 256
    assert sum(path.stat().st_size for path in locate("demo").iterdir()) < 12 << 20
