// Logging: spdlog, one line an event, to stderr. Every process calls InitLog once in main.
//
//   LOG_INFO("loaded {} experts in {:.1f} s", count, seconds);
#pragma once

#include <string_view>

#include "spdlog/spdlog.h"

namespace epic {

// `process` names the lines' origin ("coordinator", "worker 0"). The level comes from `level`
// ("debug", "info", "warning", "error"; anything else is "info").
void InitLog(std::string_view process, std::string_view level = "info");

}  // namespace epic

#define LOG_DEBUG(...) ::spdlog::debug(__VA_ARGS__)
#define LOG_INFO(...) ::spdlog::info(__VA_ARGS__)
#define LOG_WARNING(...) ::spdlog::warn(__VA_ARGS__)
#define LOG_ERROR(...) ::spdlog::error(__VA_ARGS__)
