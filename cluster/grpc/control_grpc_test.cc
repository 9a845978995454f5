#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <vector>

#include "base/epoll_loop.h"
#include "cluster/grpc/control_client.h"
#include "cluster/grpc/control_server.h"
#include "cluster/version.h"
#include "proto/epic/v1/worker.grpc.pb.h"

namespace epic::cluster {
namespace {

v1::ControlMessage Message(int64_t value) {
  v1::ControlMessage message;
  message.mutable_load_progress()->set_loaded_bytes(value);
  return message;
}

// A coordinator's listener that can be shut and opened again while its ControlServer lives on.
class ControlGrpcTest : public testing::Test {
 protected:
  ControlGrpcTest() { StartListener(); }
  ~ControlGrpcTest() override {
    worker_.reset();
    coordinator_.reset();
    control_->Close();
    StopListener();
    std::filesystem::remove(path_);
  }

  void StartListener() {
    grpc::ServerBuilder builder;
    builder.AddListeningPort("unix:" + path_, grpc::InsecureServerCredentials());
    builder.RegisterService(control_->service());
    server_ = builder.BuildAndStart();
    ASSERT_NE(server_, nullptr);
  }
  void StopListener() {
    server_->Shutdown(std::chrono::system_clock::now());
    server_.reset();
  }

  std::unique_ptr<ControlServer> NewControl(ControlServer::Options options) {
    return std::make_unique<ControlServer>(
        env_, std::move(options),
        [this](const v1::ControlHello& hello,
               std::unique_ptr<ControlLink> link) -> absl::StatusOr<ControlLinkHandlers> {
          if (hello.worker().profile() == "other") {
            return absl::FailedPreconditionError("this world has profile fma");
          }
          return OnWorker(std::move(link));
        });
  }
  void Restart(ControlServer::Options options) {
    control_->Close();
    StopListener();
    control_ = NewControl(std::move(options));
    StartListener();
  }

  void Dial(const std::string& build_id, uint64_t generation = 7,
            std::optional<JoinToken> token = std::nullopt, const std::string& profile = "fma") {
    worker_down_ = absl::OkStatus();
    v1::ControlHello hello;
    hello.mutable_worker()->set_profile(profile);
    hello.set_generation(generation);
    hello.set_build_id(build_id);
    worker_ =
        DialControl(env_, "unix:" + path_, hello,
                    {.on_message =
                         [this](const v1::ControlMessage& m) {
                           at_worker_.push_back(m.load_progress().loaded_bytes());
                         },
                     .on_down = [this](absl::Status status) { worker_down_ = std::move(status); }},
                    std::move(token));
  }

  template <class Condition>
  void RunUntil(Condition condition) {
    while (!condition()) loop_.RunOnce(absl::Milliseconds(20));
  }

  ControlLinkHandlers OnWorker(std::unique_ptr<ControlLink> link) {
    coordinator_ = std::move(link);
    return {.on_message =
                [this](const v1::ControlMessage& m) {
                  at_coordinator_.push_back(m.load_progress().loaded_bytes());
                },
            .on_down = [this](absl::Status status) { coordinator_down_ = std::move(status); }};
  }

  EpollLoop loop_{RealClock()};
  Env env_{RealClock(), loop_, RealRandom(), RealThreads()};
  const std::string path_ =
      (std::filesystem::temp_directory_path() / ("control-" + std::to_string(getpid()) + ".sock"))
          .string();
  std::unique_ptr<ControlServer> control_ = NewControl({.term = 1, .build_id = "build-a"});
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<ControlLink> worker_, coordinator_;
  std::vector<int64_t> at_worker_, at_coordinator_;
  absl::Status worker_down_, coordinator_down_;
};

TEST_F(ControlGrpcTest, MessagesPassBothWaysInOrder) {
  Dial("build-a");
  for (int i = 0; i < 500; ++i) worker_->Send(Message(i));
  RunUntil([&] { return at_coordinator_.size() == 500; });
  for (int i = 0; i < 500; ++i) coordinator_->Send(Message(i));
  RunUntil([&] { return at_worker_.size() == 500; });
  for (int i = 0; i < 500; ++i) {
    ASSERT_EQ(at_worker_[i], i);
    ASSERT_EQ(at_coordinator_[i], i);
  }
}

TEST_F(ControlGrpcTest, AnotherBuildIsRefusedWithBothNamed) {
  Dial("build-b");
  RunUntil([&] { return !worker_down_.ok(); });
  EXPECT_EQ(worker_down_.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(worker_down_.message().find("build-a"), std::string::npos);
  EXPECT_NE(worker_down_.message().find("build-b"), std::string::npos);
}

TEST_F(ControlGrpcTest, AWorkerThatIsGoneIsReportedAndItsGenerationRefused) {
  Dial("build-a");
  worker_->Send(Message(1));
  RunUntil([&] { return at_coordinator_.size() == 1; });
  worker_.reset();
  RunUntil([&] { return !coordinator_down_.ok(); });
  Dial("build-a");
  RunUntil([&] { return !worker_down_.ok(); });
  EXPECT_EQ(worker_down_.code(), absl::StatusCode::kAborted);
}

TEST_F(ControlGrpcTest, AWorkerWaitsForACoordinatorThatComesLater) {
  control_->Close();
  StopListener();
  Dial("build-a");
  worker_->Send(Message(5));
  for (int i = 0; i < 20; ++i) loop_.RunOnce(absl::Milliseconds(10));
  control_ = NewControl({.term = 2, .build_id = "build-a"});
  StartListener();
  RunUntil([&] { return at_coordinator_.size() == 1; });
  EXPECT_EQ(at_coordinator_[0], 5);
}

TEST_F(ControlGrpcTest, AWorkerThatTheWorldRefusesIsToldWhyAndGivesUp) {
  Dial("build-a", 7, std::nullopt, "other");
  RunUntil([&] { return !worker_down_.ok(); });
  EXPECT_EQ(worker_down_, absl::FailedPreconditionError("this world has profile fma"));
  EXPECT_EQ(coordinator_, nullptr);
}

TEST_F(ControlGrpcTest, WithAJoinTokenBothSidesProveThatTheyHaveIt) {
  const JoinToken token("0123456789abcdef"), other("fedcba9876543210");
  Restart({.term = 1, .build_id = "build-a", .token = token});
  Dial("build-a", 7, token);
  for (int i = 0; i < 100; ++i) worker_->Send(Message(i));
  RunUntil([&] { return at_coordinator_.size() == 100; });
  coordinator_->Send(Message(7));
  RunUntil([&] { return at_worker_.size() == 1; });
  // The worker notices first that a coordinator has another one.
  Dial("build-a", 8, other);
  RunUntil([&] { return !worker_down_.ok(); });
  EXPECT_EQ(worker_down_.code(), absl::StatusCode::kFailedPrecondition);
  Dial("build-a", 9);
  RunUntil([&] { return !worker_down_.ok(); });
  EXPECT_NE(worker_down_.message().find("--join-token-file"), std::string::npos);
  Restart({.term = 1, .build_id = "build-a"});
  Dial("build-a", 10, token);
  RunUntil([&] { return !worker_down_.ok(); });
  EXPECT_NE(worker_down_.message().find("has no join token"), std::string::npos);
  EXPECT_EQ(at_coordinator_.size(), 100u);
}

TEST_F(ControlGrpcTest, AForgedProofOrARepeatedOneLetsNobodyIn) {
  Restart({.term = 1, .build_id = "build-a", .token = JoinToken("0123456789abcdef")});
  auto stub = v1::WorkerControl::NewStub(
      grpc::CreateChannel("unix:" + path_, grpc::InsecureChannelCredentials()));
  for (const bool echo : {true, false}) {
    grpc::ClientContext context;
    auto stream = stub->Connect(&context);
    v1::ControlFrame frame;
    frame.mutable_hello()->set_protocol_version(kProtocolVersion);
    frame.mutable_hello()->set_build_id("build-a");
    frame.mutable_hello()->set_generation(9);
    frame.mutable_hello()->set_nonce(std::string(16, 'n'));
    stream->Write(frame);
    bool read = false;
    v1::ControlFrame answer;
    const auto reader = RealThreads().Start("reader", [&] {
      stream->Read(&answer);
      // What the coordinator proved proves nothing of a worker.
      frame.mutable_hello()->set_proof(echo ? answer.hello().proof() : "");
      stream->Write(frame);
      v1::ControlFrame more;
      while (stream->Read(&more)) continue;
      loop_.Post([&] { read = true; });
    });
    RunUntil([&] { return read; });
    EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  }
  EXPECT_EQ(coordinator_, nullptr);
}

}  // namespace
}  // namespace epic::cluster
