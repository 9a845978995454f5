#include "cli/free_address.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace epic::cli {
namespace {

TEST(FreeAddressTest, ATakenPortIsToldWithItsFlag) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{.sin_family = AF_INET};
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  ASSERT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), size), 0);
  ASSERT_EQ(listen(fd, 1), 0);
  ASSERT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size), 0);
  const std::string port = std::to_string(ntohs(address.sin_port));
  for (const std::string host : {"127.0.0.1:", "localhost:", "0.0.0.0:"}) {
    const absl::Status status = CheckFree("--operators", host + port);
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << host;
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr("--operators"));
    EXPECT_THAT(std::string(status.message()), testing::HasSubstr(port));
  }
  close(fd);
  EXPECT_TRUE(CheckFree("--operators", "127.0.0.1:" + port).ok());
}

TEST(FreeAddressTest, WhatCannotBeTakenPasses) {
  for (const char* address : {"127.0.0.1:0", "unix:/tmp/x", "no such host:80", "nothing"}) {
    EXPECT_TRUE(CheckFree("--port", address).ok()) << address;
  }
}

}  // namespace
}  // namespace epic::cli
