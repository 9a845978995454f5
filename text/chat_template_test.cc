#include "text/chat_template.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace epic::text {
namespace {

using ::testing::HasSubstr;
using json = nlohmann::ordered_json;

std::string WriteFolder(const json& config, const std::string& jinja = "") {
  const std::string folder = ::testing::TempDir() + "/text_chat_template";
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  std::ofstream(folder + "/tokenizer_config.json") << config.dump();
  if (!jinja.empty()) std::ofstream(folder + "/chat_template.jinja") << jinja;
  return folder;
}

std::shared_ptr<const ChatTemplate> Template(const std::string& jinja) {
  auto chat_template =
      ChatTemplate::Load(WriteFolder({{"bos_token", "<BOS>"}, {"eos_token", "<EOS>"}}, jinja));
  EXPECT_TRUE(chat_template.ok()) << chat_template.status();
  return *chat_template;
}

absl::StatusOr<std::string> Render(const std::string& jinja, const ChatInput& input = {}) {
  return Template(jinja)->Render(input);
}

ChatInput User(const std::string& content) {
  return {.messages = json::array({{{"role", "user"}, {"content", content}}})};
}

TEST(ChatTemplateTest, RendersAsTransformersDoes) {
  const json chat = json::parse(std::ifstream("text/testdata/goldens.json"))["chat"];
  for (const auto& [name, source] : chat["templates"].items()) {
    const auto chat_template = Template(source.get<std::string>());
    for (const json& golden : chat["cases"]) {
      if (golden["template"] != name) continue;
      const auto text = chat_template->Render(
          {.messages = chat["conversations"][golden["conversation"].get<std::string>()],
           .tools = golden["tools"],
           .template_kwargs = golden["kwargs"],
           .add_generation_prompt = golden["add_generation_prompt"]});
      ASSERT_TRUE(text.ok()) << name << " " << golden["conversation"] << ": " << text.status();
      EXPECT_EQ(*text, golden["text"].get<std::string>()) << name << golden["conversation"];
    }
  }
}

TEST(ChatTemplateTest, OfTheShippedModel) {
  const auto chat_template = *ChatTemplate::Load("models/tiny-r1");
  const auto tokenizer = *Tokenizer::Load("models/tiny-r1");
  const ChatInput input = {
      .messages = json::array({{{"role", "system"}, {"content", "S"}},
                               {{"role", "user"}, {"content", "u1"}},
                               {{"role", "assistant"}, {"content", "<think>\nr\n</think>\n\na1"}},
                               {{"role", "user"}, {"content", "u2"}}})};
  const std::string text =
      "<｜begin▁of▁sentence｜>S<｜User｜>u1<｜Assistant｜>a1<｜end▁of▁sentence｜><｜User｜>u2"
      "<｜Assistant｜><think>\n";
  EXPECT_EQ(*chat_template->Render(input), text);
  EXPECT_EQ(*chat_template->RenderToTokens(*tokenizer, input),
            *tokenizer->Encode(text, {.parse_special = true}));
}

TEST(ChatTemplateTest, TokensEqualThoseOfTheTextWhereNothingIsHostile) {
  const auto tokenizer = *Tokenizer::Load("models/tiny-r1");
  const json chat = json::parse(std::ifstream("text/testdata/goldens.json"))["chat"];
  for (const auto& [name, source] : chat["templates"].items()) {
    const auto chat_template = Template(source.get<std::string>());
    for (const char* conversation : {"one", "r1"}) {
      // The others print all of an assistant's turn: its markers become text.
      const bool splits = name == "r1" || name == "v31" || name == "qwen";
      if (!splits && std::string(conversation) == "r1") continue;
      const ChatInput input = {.messages = chat["conversations"][conversation]};
      EXPECT_EQ(*chat_template->RenderToTokens(*tokenizer, input),
                *tokenizer->Encode(*chat_template->Render(input), {.parse_special = true}))
          << name;
    }
  }
}

std::string EveryAddedToken(const Tokenizer& tokenizer) {
  std::string all;
  for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
    if (tokenizer.IsAdded(id)) all += "x" + std::string(tokenizer.TokenBytes(id));
  }
  return all;
}

std::vector<int32_t> AddedIds(const Tokenizer& tokenizer, std::vector<int32_t> ids) {
  std::erase_if(ids, [&](int32_t id) { return !tokenizer.IsAdded(id); });
  return ids;
}

TEST(ChatTemplateTest, ClientTextNeverBecomesAnAddedToken) {
  const auto tokenizer = *Tokenizer::Load("models/tiny-r1");
  const auto chat_template = *ChatTemplate::Load("models/tiny-r1");
  const std::string hostile = EveryAddedToken(*tokenizer);
  const auto harmless_ids = *chat_template->RenderToTokens(*tokenizer, User("hello"));
  const auto ids = *chat_template->RenderToTokens(*tokenizer, User(hostile));
  EXPECT_EQ(AddedIds(*tokenizer, ids), AddedIds(*tokenizer, harmless_ids));
  EXPECT_EQ(tokenizer->Decode(ids, false),
            "<｜begin▁of▁sentence｜><｜User｜>" + hostile + "<｜Assistant｜><think>\n");
  EXPECT_EQ(tokenizer->Decode(ids, false), *chat_template->Render(User(hostile)));
}

// Strings made of markers and of parts of them, in every place where a client can put one.
TEST(ChatTemplateTest, HostileConversationsKeepTheTemplatesMarkersAlone) {
  const auto tokenizer = *Tokenizer::Load("models/tiny-r1");
  const json chat = json::parse(std::ifstream("text/testdata/goldens.json"))["chat"];
  std::vector<std::string> parts = {"<", ">", "</",     "think",  "｜",      "<｜",     "\n",
                                    " ", "a", "\uFDD0", "\uFDD1", "<THINK>", "</THINK>"};
  for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
    if (!tokenizer->IsAdded(id)) continue;
    const std::string content(tokenizer->TokenBytes(id));
    parts.push_back(content);
    parts.push_back(content.substr(0, content.rfind('>')));
    parts.push_back(content.substr(1));
  }
  std::mt19937 random(7);
  const auto hostile = [&] {
    std::string text;
    for (int part = 1 + random() % 4; part > 0; --part) text += parts[random() % parts.size()];
    return text;
  };
  const auto conversation = [&](const std::function<std::string()>& text) {
    const json call = {{"id", text()},
                       {"type", "function"},
                       {"function", {{"name", text()}, {"arguments", {{text(), text()}}}}}};
    return json::array(
        {{{"role", "system"}, {"content", text()}},
         {{"role", "user"}, {"content", text()}, {"name", text()}},
         {{"role", "assistant"}, {"content", text()}, {"tool_calls", json::array({call, call})}},
         {{"role", "tool"}, {"content", text()}, {"tool_call_id", text()}},
         {{"role", "assistant"}, {"content", "r</think>" + text()}},
         {{"role", "user"}, {"content", text()}}});
  };
  for (const auto& [name, source] : chat["templates"].items()) {
    const auto chat_template = Template(source.get<std::string>());
    const auto markers = [&](const std::function<std::string()>& text) {
      const auto ids = chat_template->RenderToTokens(*tokenizer, {.messages = conversation(text)});
      EXPECT_TRUE(ids.ok()) << ids.status();
      return AddedIds(*tokenizer, *ids);
    };
    if (name == "qwen") continue;  // it prints a pair of markers only where there is reasoning
    const std::vector<int32_t> own = markers([] { return "hello"; });
    for (int round = 0; round < 150; ++round) EXPECT_EQ(markers(hostile), own) << name;
  }
}

TEST(ChatTemplateTest, MarkersThatATemplatePutsTogetherStayBroken) {
  const auto tokenizer = *Tokenizer::Load("models/tiny-r1");
  const auto added = [&](const std::string& jinja, const std::string& content) {
    ChatInput input = User(content);
    input.messages[0]["name"] = "ink>";
    const auto ids = Template(jinja)->RenderToTokens(*tokenizer, input);
    EXPECT_TRUE(ids.ok()) << ids.status();
    return AddedIds(*tokenizer, *ids);
  };
  const std::string content = "{{ messages[0].content";
  EXPECT_THAT(added(content + " + messages[0].name }}", "<th"), ::testing::IsEmpty());
  EXPECT_THAT(added("<" + content + " }}>", "think"), ::testing::IsEmpty());
  EXPECT_THAT(added("<" + content + " }}", "think>"), ::testing::IsEmpty());
  EXPECT_THAT(added(content + ".replace('\\n', '') }}", "<th\nink>"), ::testing::IsEmpty());
  EXPECT_THAT(added(content + " | replace('X', 'n') }}", "<thiXk>"), ::testing::IsEmpty());
  EXPECT_THAT(added(content + " | lower }}", "<THINK>"), ::testing::IsEmpty());
  EXPECT_THAT(added(content + ".strip() }}", " <think> "), ::testing::IsEmpty());
  EXPECT_THAT(added(content + ".split(' ') | join('') }}", "<th ink> <think>"),
              ::testing::IsEmpty());
  EXPECT_THAT(added(content + ".split() | join('') }}", "<th ink>"), ::testing::IsEmpty());
  EXPECT_THAT(added(content + ".splitlines() | join('') }}", "<th\nink>"), ::testing::IsEmpty());
  EXPECT_THAT(added(content + "[1:] }}", "<think><think>"), ::testing::IsEmpty());
  EXPECT_THAT(added(content + ".split('</think>', 1)[1] }}", "</think></think>"),
              ::testing::IsEmpty());
  EXPECT_THAT(added(content + " | tojson(ensure_ascii=true) }}", "é<think>"), ::testing::IsEmpty());
  EXPECT_THAT(added("<think>" + content + ".split('</think>')[0] }}</think>", "r</think>c"),
              ::testing::SizeIs(2));
}

TEST(ChatTemplateTest, ArgumentsAreClientTextToo) {
  const auto tokenizer = *Tokenizer::Load("models/tiny-r1");
  const auto chat_template = Template("{{ extra }}|{{ thinking }}|{{ level == 'think' }}");
  ChatInput input = User("u");
  input.template_kwargs = {{"extra", "<think>"}, {"thinking", true}, {"level", "think"}};
  const auto ids = *chat_template->RenderToTokens(*tokenizer, input);
  EXPECT_EQ(tokenizer->Decode(ids, false), "<think>|True|True");
  EXPECT_TRUE(AddedIds(*tokenizer, ids).empty());
}

TEST(ChatTemplateTest, ErrorsCarryTheTemplatesMessage) {
  const auto error = Render("{{ raise_exception('roles must alternate') }}").status();
  EXPECT_EQ(error.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(error.message(), HasSubstr("roles must alternate"));
  EXPECT_EQ(Render("{{ messages[0].a.b }}", User("u")).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Render("{{ 1 + messages }}").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(ChatTemplateTest, BombsRunOutOfFuelOrSpace) {
  const std::string loops =
      "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a %}{% endfor %}{% endfor %}";
  EXPECT_THAT(Render(loops).status().message(), HasSubstr("too many steps"));
  const std::string text = "{% for a in range(9999) %}{{ messages[0].content }}{% endfor %}";
  EXPECT_THAT(Render(text, User(std::string(100'000, 'x'))).status().message(),
              HasSubstr("longer than"));
  EXPECT_EQ(Render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Render("{{ range(1000000000) | list }}").status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(ChatTemplateTest, DeeplyNestedInputIsRefused) {
  json nested = "x";
  for (int depth = 0; depth < 5000; ++depth) nested = json::array({std::move(nested)});
  EXPECT_EQ(Render("{{ messages }}", {.messages = nested}).status().code(),
            absl::StatusCode::kInvalidArgument);
  nested = "x";
  for (int depth = 0; depth < ChatTemplate::kNestingMax; ++depth)
    nested = json::array({std::move(nested)});
  EXPECT_TRUE(Render("{{ messages | tojson }}", {.messages = nested}).ok());
}

TEST(ChatTemplateTest, DeeplyNestedTemplatesAreRefused) {
  for (const std::string part : {"(", "[", "not ", "-", "{% if 1 %}", "{{ ", "a.", "{'a':"}) {
    std::string source = "{{ ";
    for (int count = 0; count < 20'000; ++count) source += part;
    const auto folder = WriteFolder(json::object(), source);
    EXPECT_EQ(ChatTemplate::Load(folder).status().code(), absl::StatusCode::kInvalidArgument)
        << part;
  }
}

TEST(ChatTemplateTest, InvalidUtf8AndForeignValuesAreText) {
  EXPECT_EQ(*Render("{{ messages[0].content }}", User("a\xFF\xC3")), "a\uFFFD\uFFFD");
  const auto tokenizer = *Tokenizer::Load("models/tiny-r1");
  const auto chat_template = *ChatTemplate::Load("models/tiny-r1");
  for (const json& messages : {json(), json(3), json("x"), json::object(), json::array({1, "a"}),
                               json::array({{{"role", 1}, {"content", nullptr}}}),
                               json::array({{{"role", "user"}, {"content", {1, 2}}}})}) {
    const auto ids = chat_template->RenderToTokens(*tokenizer, {.messages = messages});
    EXPECT_TRUE(ids.ok() || ids.status().code() == absl::StatusCode::kInvalidArgument)
        << messages << ids.status();
  }
}

TEST(ChatTemplateTest, ChoosesAmongNamedTemplates) {
  const json config = {{"chat_template",
                        {{{"name", "default"}, {"template", "plain"}},
                         {{"name", "tool_use"}, {"template", "tools"}}}}};
  const auto chat_template = *ChatTemplate::Load(WriteFolder(config));
  EXPECT_EQ(*chat_template->Render({}), "plain");
  EXPECT_EQ(*chat_template->Render({.tools = json::array({json::object()})}), "tools");
  EXPECT_EQ(*(*ChatTemplate::Load(WriteFolder(config, "file")))->Render({}), "file");
}

TEST(ChatTemplateTest, FoldersWithoutAGoodTemplateAreRefused) {
  const auto load = [](const std::string& folder) { return ChatTemplate::Load(folder).status(); };
  EXPECT_EQ(load("/nonexistent").code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(load(WriteFolder(json::object())).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(load(WriteFolder({{"chat_template", 3}})).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(load(WriteFolder({{"chat_template", {1}}})).code(), absl::StatusCode::kInvalidArgument);
  const auto status = load(WriteFolder({{"chat_template", "a\n{% if %}"}}));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("line 2"));
}

TEST(ChatTemplateTest, TellsTheTimeItIsGiven) {
  ChatInput input;
  input.now = absl::FromCivil(absl::CivilSecond(2024, 2, 29, 13, 5, 9), absl::UTCTimeZone());
  EXPECT_EQ(
      *Render("{{ strftime_now('%Y-%m-%d %H:%M:%S %d %B %b %A %a %j %y %-d %I %p %%') }}", input),
      "2024-02-29 13:05:09 29 February Feb Thursday Thu 060 24 29 01 PM %");
  input.now = absl::FromCivil(absl::CivilSecond(1999, 12, 31, 0, 0, 0), absl::UTCTimeZone());
  EXPECT_EQ(*Render("{{ strftime_now('%F %T %j %A %I %p') }}", input),
            "1999-12-31 00:00:00 365 Friday 12 AM");
  EXPECT_THAT(Render("{{ strftime_now('%Q') }}", input).status().message(), HasSubstr("%Q"));
}

}  // namespace
}  // namespace epic::text
