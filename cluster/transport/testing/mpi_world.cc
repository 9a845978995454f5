#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include "base/check.h"
#include "cluster/transport/mpi/mpi_collective.h"
#include "cluster/transport/testing/world.h"
#include "gmock/gmock.h"

namespace epic::cluster {
namespace {

Collective* g_world = nullptr;

// Ranks write the same names, so each has a folder of its own.
std::filesystem::path MakeFolder() {
  std::string path = (std::filesystem::temp_directory_path() / "epic-mpi-XXXXXX").string();
  CHECK(mkdtemp(path.data()) != nullptr) << path;
  setenv("TEST_TMPDIR", path.c_str(), /*overwrite=*/1);
  return path;
}

}  // namespace

bool HasWorld(int size) { return size == g_world->size(); }

bool OutlivesAbort() { return false; }

bool ComparesOperations() { return false; }

void RunWorld(int size, const std::function<void(Collective&)>& body) {
  CHECK(HasWorld(size)) << size << " ranks";
  body(*g_world);
}

}  // namespace epic::cluster

int main(int argc, char** argv) {
  testing::InitGoogleMock(&argc, argv);
  auto world = epic::cluster::StartMpi();
  CHECK_OK(world.status());
  epic::cluster::g_world = world->get();
  const std::filesystem::path folder = epic::cluster::MakeFolder();
  const int failed = RUN_ALL_TESTS();
  std::filesystem::remove_all(folder);
  std::printf("rank %d of %d ended with %d\n", (*world)->rank(), (*world)->size(), failed);
  return failed;
}
