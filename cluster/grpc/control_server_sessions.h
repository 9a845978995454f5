// Private to ControlServer: its sessions with workers, and the streams that have none so far.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>

#include "cluster/grpc/control_server.h"
#include "cluster/grpc/control_stream.h"
#include "cluster/grpc/session_driver.h"
#include "cluster/mailbox.h"

namespace epic::cluster {

// A stream begins as a newcomer. Once its hello (and, with a token, its proof) is checked, the
// stream belongs to the session of its generation and replaces an older stream of that session. A
// session lasts over redials. A generation whose session has ended is never let in again. Loop
// thread only.
struct ControlServer::Sessions : public std::enable_shared_from_this<Sessions> {
  class Service;
  // One generation of a worker. Held by shared_ptr: a handler may end the session that calls it.
  struct Session {
    std::unique_ptr<SessionDriver> driver;
    ControlLinkHandlers handlers;
    TimerId redial_timer = 0;
  };
  // What the owner of a generation holds.
  class Link : public ControlLink {
   public:
    Link(std::weak_ptr<Sessions> sessions, uint64_t generation)
        : sessions_(std::move(sessions)), generation_(generation) {}
    ~Link() override {
      if (const auto alive = sessions_.lock()) alive->Forget(generation_);
    }
    void Send(v1::ControlMessage message) override {
      if (const auto alive = sessions_.lock()) alive->Send(generation_, std::move(message));
    }

   private:
    const std::weak_ptr<Sessions> sessions_;
    const uint64_t generation_;
  };

  // A stream without a session so far.
  struct Newcomer {
    v1::ControlFrame hello;  // its first frame, checked; the proof of a token is awaited
    std::string nonce;
    bool written = false;  // whether the answer to the hello has been written
    TimerId timer = 0;
  };

  Sessions(Env env, Options options, OnWorker on_worker);
  ~Sessions();

  // Newcomers.
  void Accept(std::shared_ptr<ControlStream> stream);
  void OnHello(const std::shared_ptr<ControlStream>& stream, const v1::ControlFrame& frame);
  grpc::Status Check(const v1::ControlFrame& frame) const;
  void AskForProof(const std::shared_ptr<ControlStream>& stream, Newcomer& newcomer);
  JoinFacts Facts(const v1::ControlHello& hello, const std::string& nonce) const;
  void EndGreeting(const std::shared_ptr<ControlStream>& stream);
  void Refuse(const std::shared_ptr<ControlStream>& stream, const grpc::Status& status);
  std::string NewNonce() const;

  // Sessions.
  v1::ControlFrame Answer(uint64_t generation) const;
  void Admit(const std::shared_ptr<ControlStream>& stream, const v1::ControlFrame& hello,
             bool answered, bool write_busy);
  absl::Status AddSession(const v1::ControlHello& hello);
  void OnBroken(uint64_t generation);
  void Down(uint64_t generation, absl::Status status);
  void Forget(uint64_t generation);
  void Send(uint64_t generation, v1::ControlMessage message);
  void Close();

  Env env;
  const Options options;
  OnWorker on_worker;
  const std::shared_ptr<Mailbox> mailbox;
  std::unique_ptr<Service> service;
  std::map<uint64_t, std::shared_ptr<Session>> sessions;
  std::set<uint64_t> revoked;  // generations that were down once
  std::map<std::shared_ptr<ControlStream>, Newcomer> newcomers;
  bool closed = false;
};

}  // namespace epic::cluster
