#include "base/log.h"

#include <memory>
#include <string>

#include "spdlog/sinks/stdout_color_sinks.h"

namespace epic {

void InitLog(std::string_view process, std::string_view level) {
  auto logger = std::make_shared<spdlog::logger>(
      std::string(process), std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  logger->set_pattern("%H:%M:%S.%e %^%L%$ %n: %v");
  // spdlog takes a word that it does not know for `off`. A process must not be silent for that.
  spdlog::level::level_enum parsed = spdlog::level::from_str(std::string(level));
  logger->set_level(parsed == spdlog::level::off ? spdlog::level::info : parsed);
  // A line that waits in a buffer is lost with a process that is killed, when it is needed most.
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

}  // namespace epic
