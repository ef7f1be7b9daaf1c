// What the emulated tile instructions must do, and how the AMX kernels use them.
#pragma once

namespace ftrt::test {

void check_tile_instructions();

// Each block configures the tiles once and releases them.
void check_tile_use();

}  // namespace ftrt::test
