"""The tree is tidy, and tidy.py would notice if it were not."""
import unittest
from pathlib import Path

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

    def test_see_the_outer_world(self):
        for line in ("absl::Now();", "std::thread t(f);", "std::random_device d;", "usleep(1);",
                     "std::this_thread::sleep_for(x);", "std::chrono::steady_clock::now();"):
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


if __name__ == "__main__":
    unittest.main()
