#include "shadow.h"

namespace emulation {
namespace {

unsigned thread_in(Stamp stamp) { return static_cast<unsigned>(stamp & 1023); }
unsigned warp_in(Stamp stamp) { return thread_in(stamp) / kLanes; }
uint32_t block_epoch_in(Stamp stamp) { return static_cast<uint32_t>(stamp >> 32); }
uint32_t warp_epoch_in(Stamp stamp) { return static_cast<uint32_t>(stamp) >> 10; }

bool is_of_this_launch(Stamp stamp) { return block_epoch_in(stamp) >= block.launch_epoch; }
bool is_of_this_block(Stamp stamp) { return block_epoch_in(stamp) >= block.first_epoch; }
bool is_of_another_block(Stamp stamp) {
  return is_of_this_launch(stamp) && !is_of_this_block(stamp);
}

}  // namespace

bool Shadow::is_before(Stamp earlier, Stamp later) const {
  if (!is_of_this_block(earlier)) return is_of_block || !is_of_this_launch(earlier);
  if (block_epoch_in(earlier) < block_epoch_in(later)) return true;
  if (thread_in(earlier) == thread_in(later)) return true;
  return warp_in(earlier) == warp_in(later) && warp_epoch_in(earlier) < warp_epoch_in(later);
}

void Shadow::fail_race(const Cell& cell, Stamp me, uint16_t site, Stamp other, uint16_t other_site,
                       const char* other_does) const {
  const auto offset = static_cast<size_t>(&cell - cells);
  if (!is_of_this_block(other)) {
    fail("race in %s at byte %zu: thread %u in %s, and thread %u of another block %s it in %s",
         name, offset, thread_in(me), describe(site), thread_in(other), other_does,
         describe(other_site));
  }
  fail(
      "race in %s at byte %zu: thread %u in %s, and thread %u %s it in %s, with no barrier "
      "between",
      name, offset, thread_in(me), describe(site), thread_in(other), other_does,
      describe(other_site));
}

void Shadow::check_arrived(const Cell& cell, Stamp me, uint16_t site) const {
  if (cell.kind != Kind::kOnItsWay) return;
  fail("byte %zu of %s is on its way: thread %u in %s, and thread %u has not waited for its %s",
       static_cast<size_t>(&cell - cells), name, thread_in(me), describe(site),
       thread_in(cell.write), describe(cell.write_site));
}

void Shadow::note_read(Cell& cell, Stamp me, uint16_t site) const {
  if (cell.reads[0] == me || cell.reads[1] == me) return;  // and nobody wrote since
  if (is_of_block) {
    check_arrived(cell, me, site);
    if (!is_of_this_block(cell.write)) {
      fail("byte %zu of %s was never written: thread %u in %s", static_cast<size_t>(&cell - cells),
           name, thread_in(me), describe(site));
    }
  }
  if (!is_before(cell.write, me)) {
    fail_race(cell, me, site, cell.write, cell.write_site, "wrote");
  }
  Stamp& first = cell.reads[0];
  Stamp& second = cell.reads[1];
  if (!is_of_block && is_of_another_block(first)) return;
  const auto is_old = [](Stamp stamp) { return block_epoch_in(stamp) < block.epoch; };
  const auto is_earlier_here = [me](Stamp stamp) {
    return warp_in(stamp) == warp_in(me) && warp_epoch_in(stamp) < warp_epoch_in(me);
  };
  if (is_old(first) || is_earlier_here(first)) {
    first = me;
    cell.read_sites[0] = site;
    if (is_earlier_here(second)) second = 0;
  } else if (is_old(second) || warp_in(second) == warp_in(first)) {
    second = me;
    cell.read_sites[1] = site;
  }
}

void Shadow::note_write(Cell& cell, Stamp me, uint16_t site, Kind kind) const {
  if (is_of_block) check_arrived(cell, me, site);
  const bool is_ordered = is_before(cell.write, me);
  if (!is_ordered && !(kind == Kind::kAtomic && cell.kind == Kind::kAtomic)) {
    fail_race(cell, me, site, cell.write, cell.write_site, "wrote");
  }
  for (int i = 0; i < 2; ++i) {
    if (!is_before(cell.reads[i], me)) {
      fail_race(cell, me, site, cell.reads[i], cell.read_sites[i], "read");
    }
    cell.reads[i] = 0;
  }
  // what comes after this can be in order with this, never with another block
  if (!is_ordered && is_of_another_block(cell.write)) return;
  cell.write = me;
  cell.write_site = site;
  cell.kind = kind;
}

void Shadow::note_read(size_t offset, size_t bytes, Stamp me, uint16_t site) const {
  for (size_t i = 0; i < bytes; ++i) note_read(cells[offset + i], me, site);
}

void Shadow::note_write(size_t offset, size_t bytes, Stamp me, uint16_t site, Kind kind) const {
  for (size_t i = 0; i < bytes; ++i) note_write(cells[offset + i], me, site, kind);
}

}  // namespace emulation
