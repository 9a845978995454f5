"""The results pages are written from clean trees alone."""
import argparse
import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import report


class Trees(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        (self.root / "tests/perf").mkdir(parents=True)
        for name in ("a.cc", "tests/perf/RESULTS.md"):
            (self.root / name).write_text("x\n")
        self.git("init", "-q")
        self.git("add", "-A")
        self.git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "x")

    def git(self, *arguments):
        subprocess.run(["git", "-C", self.root, *arguments], check=True)

    def test_a_change_of_a_source_is_refused_and_named(self):
        report.require_clean(self.root)
        self.assertFalse(report.commit(self.root).endswith("-dirty"))
        (self.root / "a.cc").write_text("y\n")
        with self.assertRaisesRegex(SystemExit, "a.cc"):
            report.require_clean(self.root)
        self.assertTrue(report.commit(self.root).endswith("-dirty"))

    def test_the_pages_themselves_may_differ(self):
        (self.root / "tests/perf/RESULTS.md").write_text("y\n")
        report.require_clean(self.root)

    def test_the_flag_refuses_before_anything_is_measured(self):
        parser = argparse.ArgumentParser()
        parser.add_argument("--write", action=report.Write)
        self.assertFalse(parser.parse_args([]).write)
        with mock.patch.object(report, "dirty_files", return_value=[]):
            self.assertTrue(parser.parse_args(["--write"]).write)
        with mock.patch.object(report, "dirty_files", return_value=["a.cc"]), self.assertRaises(report.DirtyTree):
            parser.parse_args(["--write"])


if __name__ == "__main__":
    unittest.main()
