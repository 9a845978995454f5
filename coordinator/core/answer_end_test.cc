// Where the core seals the journal of a request with stop strings.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "base/sim_loop.h"
#include "cluster/loopback_control_link.h"
#include "coordinator/core/core.h"

namespace epic::coordinator {
namespace {

// A rank that generates the tokens of a script for every sequence, as many as it is asked for.
class ScriptedWorker {
 public:
  ScriptedWorker(SimLoop& loop, Core& core) {
    auto at_core = std::make_shared<cluster::ControlLinkHandlers>();
    auto links = cluster::NewLoopbackPair(
        loop,
        {.on_message = [at_core](const auto& message) { at_core->on_message(message); },
         .on_down = [at_core](absl::Status status) { at_core->on_down(std::move(status)); }},
        {.on_message =
             [this](const auto& message) {
               if (message.has_start()) Generate(message.start());
             },
         .on_down = nullptr});
    v1::ControlHello hello;
    hello.set_generation(1);
    *at_core = *core.AddWorker(hello, std::move(links.first));
    link_ = std::move(links.second);
    v1::ControlMessage message;
    message.mutable_ready()->set_max_model_len(1000);
    link_->Send(message);
  }

  std::vector<int32_t> script;

 private:
  void Generate(const v1::StartSequence& start) {
    v1::ControlMessage message;
    for (int position = 0; position < start.max_tokens(); ++position) {
      v1::SequenceToken& token = *message.mutable_step()->add_tokens();
      token.set_sequence(start.sequence());
      token.set_attempt(start.attempt());
      token.set_position(position);
      token.set_token(script.at(position));
      if (position + 1 == start.max_tokens()) token.set_finish_reason(v1::FINISH_REASON_LENGTH);
    }
    link_->Send(message);
  }

  std::unique_ptr<cluster::ControlLink> link_;
};

TEST(AnswerEndTest, AJournalEndsWhereTheParserOfAClientEnds) {
  SimLoop loop;
  SeededRandom random{1};
  auto tokenizer = *text::Tokenizer::Load("models/tiny-r1");
  Core core({loop, loop, random, RealThreads()}, {.names = {"toy"}, .vocab_size = 1024}, tokenizer);
  ScriptedWorker worker(loop, core);
  loop.RunPosted();
  const auto ids = [&](const std::string& text) {
    return *tokenizer->Encode(text, {.parse_special = true});
  };
  const auto draw = [&](const std::vector<std::string>& from) {
    return from[random.Next() % from.size()];
  };
  int stopped_count = 0;
  for (int round = 0; round < 300; ++round) {
    std::string text = draw({"<think>", "a", "\n"});
    for (int part = 0; part < 8; ++part) {
      text += draw({"carry", "\n", "\n\n", "</think>", " a", "b", "é", "<｜end▁of▁sentence｜>"});
    }
    worker.script = ids(text);
    Request request{
        .id = absl::StrCat("r", round),
        .prompt = ids(draw({"q<｜Assistant｜><think>\n", "q<｜Assistant｜></think>", "q"})),
        .max_tokens = static_cast<int>(worker.script.size())};
    request.answer = {.split_reasoning = random.Next() % 3 > 0,
                      .skip_special = random.Next() % 2 > 0,
                      .stop = {draw({"carry", "\n\n", "arryc", " ab", "é", "sentence"})}};
    auto stream = *core.Submit(request);
    loop.RunPosted();
    const Slice slice = stream->Read(0, 0);
    text::AnswerParser parser(*tokenizer, request.prompt, request.answer);
    for (const JournalToken& token : slice.tokens) {
      EXPECT_FALSE(parser.ended()) << text;
      parser.Push(token.token);
    }
    EXPECT_EQ(slice.finish, parser.ended() ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH)
        << text;
    EXPECT_TRUE(parser.ended() || slice.tokens.size() == worker.script.size()) << text;
    stopped_count += parser.ended();
  }
  EXPECT_GT(stopped_count, 60);
  EXPECT_LT(stopped_count, 240);
}

}  // namespace
}  // namespace epic::coordinator
