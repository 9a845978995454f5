"""The tree is tidy, and tidy.py would notice if it were not."""
import unittest
from pathlib import Path

import commits
import tidy


def found(check, path, text):
    return list(check(path, text))


class TheTree(unittest.TestCase):
    def test_has_no_problems(self):
        self.assertEqual(tidy.problems(Path(__file__).resolve().parents[2]), [])


class TheChecks(unittest.TestCase):
    def test_see_an_arrow_the_wrong_way(self):
        self.assertTrue(found(tidy.check_arrows, "kernels/a.cc", '#include "model/step.h"\n'))
        self.assertTrue(found(tidy.check_arrows, "worker/a.cc", '#include "coordinator/core.h"\n'))
        self.assertTrue(found(tidy.check_arrows, "coordinator/a.cc", '#include "model/step.h"\n'))
        self.assertTrue(found(tidy.check_arrows, "model/a.cc", '#include "tests/x.h"\n'))
        self.assertFalse(found(tidy.check_arrows, "worker/a.cc", '#include "model/step.h"\n'))
        self.assertFalse(found(tidy.check_arrows, "coordinator/a.cc", '#include "model/config.h"\n'))

    def test_see_an_arrow_between_sub_folders(self):
        self.assertTrue(found(tidy.check_sub_arrows, "worker/scheduler/a.cc", '#include "worker/engine/engine.h"\n'))
        self.assertTrue(found(tidy.check_sub_arrows, "kernels/cpu/a.cc", '#include "kernels/cuda/backend.h"\n'))
        self.assertFalse(found(tidy.check_sub_arrows, "kernels/cpu/a.cc", '#include "kernels/backend.h"\n'))
        self.assertFalse(found(tidy.check_sub_arrows, "worker/engine/a.cc", '#include "worker/kv/kv_pool.h"\n'))

    def test_see_the_outer_world(self):
        for line in ("absl::Now();", "std::thread t(f);", "std::random_device d;", "usleep(1);",
                     "std::this_thread::sleep_for(x);", "std::this_thread::yield();", "__rdtsc();", "std::chrono::steady_clock::now();"):
            self.assertTrue(found(tidy.check_world, "worker/a.cc", line), line)
            self.assertFalse(found(tidy.check_world, "base/a.cc", line), line)
            self.assertFalse(found(tidy.check_world, "worker/a.cc", "// " + line), line)

    def test_see_edges_in_the_core(self):
        self.assertTrue(found(tidy.check_edges, "coordinator/core.cc", "#include <grpcpp/grpcpp.h>\n"))
        self.assertTrue(found(tidy.check_edges, "coordinator/core.cc", "#include <boost/beast.hpp>\n"))
        self.assertFalse(found(tidy.check_edges, "cluster/grpc/server.cc", "#include <grpcpp/grpcpp.h>\n"))

    def test_see_long_lines_and_functions(self):
        self.assertTrue(found(tidy.check_lines, "base/a.cc", "x" * 101))
        self.assertTrue(found(tidy.check_lines, "base/a.h", "int x;\n"))
        body = "void F(int a) {\n" + "  G();\n" * 80 + "}\n"
        self.assertTrue(found(tidy.check_functions, "base/a.cc", body))
        self.assertFalse(found(tidy.check_functions, "base/a.cc", "namespace a {\n" + "int x;\n" * 90 + "}\n"))

    def test_see_wide_pages(self):
        self.assertTrue(found(tidy.check_width, "docs/a.md", "word " * 21))
        self.assertFalse(found(tidy.check_width, "docs/a.md", "| cell " * 21))
        self.assertFalse(found(tidy.check_width, "models/tiny-r1/README.md", "word " * 21))

    def test_see_long_files(self):
        self.assertTrue(found(tidy.check_size, "base/a.cc", "int x;\n" * 351))
        self.assertFalse(found(tidy.check_size, "base/a_test.cc", "int x;\n" * 351))
        self.assertTrue(found(tidy.check_size, "base/a_test.cc", "int x;\n" * 501))

    def test_see_pages_that_are_not_there(self):
        for text in ("// docs/nowhere.md says why", "See [it](nowhere.md).", "// nowhere.md §2"):
            self.assertTrue(found(tidy.check_references, "docs/a.md", text), text)
        for text in ("// docs/numerics.md says why", "See [it](numerics.md).", "// protocol.md §4", "See ../README.md."):
            self.assertFalse(found(tidy.check_references, "docs/a.md", text), text)

    def test_see_large_commits_without_a_reason(self):
        self.assertTrue(commits.problems_of("base: a loop", "", 401))
        self.assertFalse(commits.problems_of("base: a loop", "It moves whole.", 401))
        self.assertFalse(commits.problems_of("base: a loop", "", 400))
        self.assertTrue(commits.problems_of("x" * 121, "", 1))

    def test_see_a_mutex_that_clang_cannot_check(self):
        for line in ("std::mutex mutex_;", "const std::lock_guard lock(mutex_);", "std::condition_variable_any c;",
                     "mutable absl::Mutex mutex_;\nint count_;", "Mutex mutex;"):
            self.assertTrue(found(tidy.check_mutexes, "base/a.h", line), line)
        self.assertFalse(found(tidy.check_mutexes, "base/a.h", "absl::Mutex mutex_;\nint count_ ABSL_GUARDED_BY(mutex_);"))
        self.assertFalse(found(tidy.check_mutexes, "kernels/mutex.h", "std::mutex mutex_;"))

    def test_have_no_exception_that_is_not_needed(self):
        for path, lines in tidy.LONG_FILES.items():
            self.assertEqual((tidy.ROOT / path).read_text().count("\n"), lines, f"{path}: lower its number, or take it off")

    def test_see_one_more_place_that_knows_the_sampling_settings(self):
        line = "start.set_frequency_penalty(request.frequency_penalty);\n"
        self.assertTrue(found(tidy.check_sampling, "coordinator/core/convert.cc", line))
        self.assertTrue(found(tidy.check_sampling, "proto/epic/v1/worker.proto", "float frequency_penalty = 9;\n"))
        self.assertFalse(found(tidy.check_sampling, "model/sampler.cc", line))
        self.assertFalse(found(tidy.check_sampling, "model/sampler_test.cc", line))


if __name__ == "__main__":
    unittest.main()
