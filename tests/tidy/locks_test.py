"""clang finds what is locked wrongly, and locks.py asks it about every source that may be."""
import tempfile
import unittest
from pathlib import Path

import locks

SOURCE = """
#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
class Counter {
 public:
  void Add() {
    %s
    Increment();
  }

 private:
  void Increment() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { ++count_; }
  absl::Mutex mutex_;
  int count_ ABSL_GUARDED_BY(mutex_) = 0;
};
"""


class Clang(unittest.TestCase):
    def errors(self, text: str) -> str:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "counter.cc"
            source.write_text(text)
            return locks.errors_in(source, ["-std=c++20"])

    def test_finds_a_call_without_the_lock_and_passes_one_with_it(self):
        self.assertIn("requires holding mutex 'mutex_'", self.errors(SOURCE % ""))
        self.assertEqual(self.errors(SOURCE % "const absl::MutexLock lock(&mutex_);"), "")

    def test_finds_a_lock_taken_twice(self):
        self.assertIn("already held", self.errors(SOURCE % "const absl::MutexLock lock(&mutex_); mutex_.Lock();"))

    def test_finds_a_member_that_is_guarded_by_a_mutex_without_annotations(self):
        self.assertIn("std::mutex", self.errors("#include <mutex>\n" + (SOURCE % "").replace("absl::Mutex ", "std::mutex ")))


class TheChoice(unittest.TestCase):
    def test_is_of_sources_that_name_a_mutex_or_include_a_header_that_does(self):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            (root / "a.h").write_text("absl::Mutex mutex_;\n")
            (root / "a.cc").write_text('#include "a.h"\n')
            (root / "b.cc").write_text("const absl::MutexLock lock(&mutex);\n")
            (root / "c.cc").write_text('#include "c.h"\n')
            (root / "a_test.cc").write_text('#include "a.h"\n')
            self.assertEqual(locks.chosen(root, ["a.cc", "a_test.cc", "b.cc", "c.cc"]), ["a.cc", "b.cc"])

    def test_keeps_what_a_source_is_compiled_with(self):
        command = "/usr/bin/ccache /usr/bin/c++ -DX -I/r -std=c++20 -o a.o -c /r/a.cc"
        self.assertEqual(locks.flags_of(command), ["-DX", "-I/r", "-std=c++20"])


if __name__ == "__main__":
    unittest.main()
