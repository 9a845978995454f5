// CHECK: for what cannot happen. It stays on in every build; what can happen is an absl::Status.
//
//   CHECK(rows > 0) << "rows " << rows;
//   CHECK_EQ(lease.pages, used_pages);
#pragma once

#include <sstream>

namespace epic::internal {

// Collects the message; its destructor logs it and ends the process.
class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  [[noreturn]] ~CheckFailure();
  std::ostream& stream() { return message_; }

 private:
  std::ostringstream message_;
};

struct Voidify {
  void operator&(std::ostream&) const {}
};

}  // namespace epic::internal

#define CHECK(condition)                      \
  (condition) ? (void)0                       \
              : ::epic::internal::Voidify() & \
                    ::epic::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()
#define EPIC_CHECK_OP(a, op, b) CHECK((a)op(b)) << " (" << (a) << " against " << (b) << ") "
#define CHECK_EQ(a, b) EPIC_CHECK_OP(a, ==, b)
#define CHECK_NE(a, b) EPIC_CHECK_OP(a, !=, b)
#define CHECK_LT(a, b) EPIC_CHECK_OP(a, <, b)
#define CHECK_LE(a, b) EPIC_CHECK_OP(a, <=, b)
#define CHECK_GT(a, b) EPIC_CHECK_OP(a, >, b)
#define CHECK_GE(a, b) EPIC_CHECK_OP(a, >=, b)
#define CHECK_OK(expression)                           \
  do {                                                 \
    const auto& epic_check_ok = (expression);          \
    CHECK(epic_check_ok.ok()) << " " << epic_check_ok; \
  } while (false)
