// A program that used MLX before the library did: a process of its own.
#include <mlx/ops.h>
#include <mlx/transforms.h>

#include "expect.h"
#include "open_model.h"

namespace helium {
namespace {

TEST(other_mlx_user, a_program_that_used_mlx_before_is_told_so) {
  mlx::core::eval(mlx::core::zeros({1}));
  const testing::OpenModel model;
  EXPECT_EQUAL(model.status, HELIUM_ERROR_STATE);
  EXPECT(model.handle == nullptr);
  EXPECT(model.message.find("MLX was used in this process before") == 0);
}

}  // namespace
}  // namespace helium
