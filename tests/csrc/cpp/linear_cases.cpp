#include "linear_cases.h"

#include <cmath>

#include "check.h"
#include "ftrt/linear.h"

namespace ftrt::test {
namespace {

// Numbers of the task's type in memory of exactly their size, and in float64.
struct Floats {
  std::vector<uint8_t> bytes;
  std::vector<double> value;
};

double read(const std::vector<uint8_t>& bytes, Element type, int64_t i) {
  uint32_t bits = 0;
  std::memcpy(&bits, bytes.data() + i * element_bytes(type), element_bytes(type));
  if (type == Element::kBFloat16) return bf16_value(static_cast<uint16_t>(bits));
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

Floats floats(Random& random, Element type, int64_t count) {
  Floats result;
  result.bytes.resize(static_cast<size_t>(count * element_bytes(type)));
  for (int64_t i = 0; i < count; ++i) {
    const float value = random.number();
    const uint16_t half = bf16_bits(value);
    const void* from = type == Element::kFloat32 ? static_cast<const void*>(&value) : &half;
    std::memcpy(result.bytes.data() + i * element_bytes(type), from, element_bytes(type));
    result.value.push_back(read(result.bytes, type, i));
  }
  return result;
}

// A layer with everything that it may be given, and its results in float64 beside the sums of the
// terms' absolute values, which the tolerance is a share of.
struct LinearCase {
  Element type;
  int64_t rows, in, out, rank, groups;
  bool is_w8a8;
  float scaling = 0.5f;
  Dropout dropout;
  Floats x, dy, a, b;
  std::vector<double> weight;
  std::vector<float> scale, bias, h, xscale;
  std::vector<int8_t> packed, xq;
  std::vector<int64_t> outliers;
  std::vector<uint8_t> y, dx, da, db;

  double kept(int64_t m, int64_t k) const {
    if (dropout.threshold == 0) return 1.0;
    const uint32_t step = static_cast<uint32_t>(k) * kDropoutStep;
    const bool is_kept = dropout_mix(dropout_row_key(dropout, m) ^ step) >= dropout.threshold;
    return is_kept ? dropout.factor : 0.0;
  }
  Weight operand() const {
    Weight w;
    w.q = packed.data();
    w.scale = scale.data();
    w.out_features = out;
    w.in_features = in;
    w.groups = groups;
    return w;
  }
  LowRank update() const { return {a.bytes.data(), b.bytes.data(), rank, scaling, dropout}; }
  QuantizedInput quantized() const {
    if (!is_w8a8) return {};
    return {xq.data(), xscale.data(), outliers.data(), static_cast<int64_t>(outliers.size())};
  }
};

void random_weight(Random& random, LinearCase& item) {
  const int64_t steps = (item.in + 3) / 4;
  item.weight.resize(static_cast<size_t>(item.out * item.in));
  item.packed.assign(static_cast<size_t>((item.out + 15) / 16 * steps * 64), 0);
  for (int64_t i = 0; i < item.out * item.groups; ++i) item.scale.push_back(random.number());
  for (int64_t n = 0; n < item.out; ++n) {
    for (int64_t k = 0; k < item.in; ++k) {
      const int64_t at = (n / 16 * steps + k / 4) * 64 + n % 16 * 4 + k % 4;
      item.packed[at] = static_cast<int8_t>(random.below(255) - 127);
      const int64_t group = k / (item.in / item.groups);
      item.weight[n * item.in + k] =
          static_cast<double>(item.packed[at]) * item.scale[n * item.groups + group];
    }
  }
}

LinearCase random_case(Random& random) {
  LinearCase item;
  const int64_t sizes[] = {1, 2, 3, 5, 15, 16, 17, 33, 48, 70};
  const int64_t counts[] = {0, 1, 2, 13, 15, 31, 33};
  const int64_t ranks[] = {0, 1, 8, 17};
  item.type = random.coin() ? Element::kFloat32 : Element::kBFloat16;
  item.rows = random.one_of(counts);
  item.in = random.one_of(sizes);
  item.out = random.one_of(sizes);
  item.rank = random.one_of(ranks);
  item.is_w8a8 = random.coin();
  item.groups = !item.is_w8a8 && item.in % 3 == 0 ? 3 : 1;
  if (random.coin()) item.dropout = {random.next(), 1u << 30, 4.0f / 3.0f};
  item.x = floats(random, item.type, item.rows * item.in);
  item.dy = floats(random, item.type, item.rows * item.out);
  item.a = floats(random, item.type, item.rank * item.in);
  item.b = floats(random, item.type, item.out * item.rank);
  random_weight(random, item);
  for (int64_t n = 0; n < item.out; ++n) item.bias.push_back(random.number());
  for (int64_t k = 0; item.is_w8a8 && k < item.in; ++k) {
    if (random.below(8) == 0) item.outliers.push_back(k);
  }
  const int64_t columns = item.rank + static_cast<int64_t>(item.outliers.size());
  item.h.resize(static_cast<size_t>(item.rows * columns));
  item.y.resize(static_cast<size_t>(item.rows * item.out * element_bytes(item.type)));
  item.dx.resize(item.x.bytes.size());
  item.da.resize(item.a.bytes.size());
  item.db.resize(item.b.bytes.size());
  return item;
}

// Σ of terms and of their absolute values.
struct Sum {
  double value = 0.0;
  double size = 0.0;
  void add(double term) {
    value += term;
    size += std::fabs(term);
  }
  void add(double factor, const Sum& other) {
    value += factor * other.value;
    size += std::fabs(factor) * other.size;
  }
};

struct Expected {
  std::vector<Sum> h, ds;
};

bool close(const LinearCase& item, const std::vector<uint8_t>& got, int64_t i, const Sum& want,
           double extra, const char* name, const std::string& where) {
  const double unit = item.type == Element::kFloat32 ? 1.0 / (1 << 19) : 1.0 / (1 << 6);
  const double value = read(got, item.type, i);
  if (expect(std::fabs(value - want.value) <= want.size * unit + extra, where + ", " + name)) {
    return true;
  }
  std::printf("  %s[%ld] is %.9g, not %.9g: rows %ld, in %ld, out %ld, rank %ld\n", name,
              static_cast<long>(i), value, want.value, static_cast<long>(item.rows),
              static_cast<long>(item.in), static_cast<long>(item.out),
              static_cast<long>(item.rank));
  return false;
}

void quantize(LinearCase& item, const std::string& where, const Threads& threads) {
  item.xq.resize(static_cast<size_t>(item.rows * item.in));
  item.xscale.resize(static_cast<size_t>(item.rows));
  const int64_t count = static_cast<int64_t>(item.outliers.size());
  quantize_tokens({item.x.bytes.data(), item.rows, item.in}, item.in, item.type,
                  item.outliers.data(), count, item.xq.data(), item.xscale.data(), threads);
  for (int64_t m = 0; m < item.rows; ++m) {
    size_t next = 0;
    for (int64_t k = 0; k < item.in; ++k) {
      const int64_t i = m * item.in + k;
      const bool is_outlier = next < item.outliers.size() && item.outliers[next] == k;
      if (is_outlier) ++next;
      const double level = item.x.value[i] / item.xscale[m];
      const double off = is_outlier ? std::fabs(item.xq[i]) : std::fabs(item.xq[i] - level) - 0.5;
      expect(off <= 1e-4, where + ", quantize_tokens");
      if (!is_outlier) item.x.value[i] = static_cast<double>(item.xq[i]) * item.xscale[m];
    }
  }
}

// x is what the base layer sees, `exact` what the adapter sees: the same but for W8A8.
void forward(LinearCase& item, const std::vector<double>& exact, Expected& expected,
             const std::string& where, const Threads& threads) {
  LinearForward task = {};
  task.type = item.type;
  task.x = {item.x.bytes.data(), item.rows, item.in};
  task.quantized = item.quantized();
  task.weight = item.operand();
  task.bias = item.bias.data();
  task.update = item.update();
  task.h = item.h.data();
  task.y = item.y.data();
  linear_forward(task, threads);
  for (int64_t m = 0; m < item.rows; ++m) {
    for (int64_t r = 0; r < item.rank; ++r) {
      Sum h;
      for (int64_t k = 0; k < item.in; ++k) {
        h.add(exact[m * item.in + k] * item.kept(m, k) * item.a.value[r * item.in + k]);
      }
      expected.h.push_back(h);
    }
    for (int64_t n = 0; n < item.out; ++n) {
      Sum y;
      for (int64_t k = 0; k < item.in; ++k) {
        y.add(item.x.value[m * item.in + k] * item.weight[n * item.in + k]);
      }
      y.add(item.bias[n]);
      for (int64_t r = 0; r < item.rank; ++r) {
        y.add(item.scaling * item.b.value[n * item.rank + r], expected.h[m * item.rank + r]);
      }
      if (!close(item, item.y, m * item.out + n, y, 0.0, "y", where)) return;
    }
  }
}

void check_dx(const LinearCase& item, const Expected& expected, const std::string& where) {
  for (int64_t m = 0; m < item.rows; ++m) {
    // W8A8 rounds dy · scale to 1 / 127 of the row's largest
    double step = 0.0;
    for (int64_t n = 0; item.is_w8a8 && n < item.out; ++n) {
      step = std::fmax(step, std::fabs(item.dy.value[m * item.out + n] * item.scale[n]) / 127);
    }
    for (int64_t k = 0; k < item.in; ++k) {
      Sum dx;
      double rounding = 0.0;
      for (int64_t n = 0; n < item.out; ++n) {
        const double weight = item.weight[n * item.in + k];
        dx.add(item.dy.value[m * item.out + n] * weight);
        if (item.is_w8a8) rounding += 0.501 * step * std::fabs(weight / item.scale[n]);
      }
      for (int64_t r = 0; r < item.rank; ++r) {
        dx.add(item.kept(m, k) * item.a.value[r * item.in + k], expected.ds[m * item.rank + r]);
      }
      if (!close(item, item.dx, m * item.in + k, dx, rounding, "dx", where)) return;
    }
  }
}

void backward(LinearCase& item, Expected& expected, const std::string& where,
              const Threads& threads) {
  LinearBackward task = {};
  task.type = item.type;
  task.dy = {item.dy.bytes.data(), item.rows, item.out};
  if (!item.is_w8a8) task.x = {item.x.bytes.data(), item.rows, item.in};
  task.quantized = item.quantized();
  task.weight = item.operand();
  task.update = item.update();
  task.h = item.h.data();
  task.dx = item.dx.data();
  task.da = item.da.data();
  task.db = item.db.data();
  linear_backward(task, threads);
  for (int64_t m = 0; m < item.rows; ++m) {
    for (int64_t r = 0; r < item.rank; ++r) {
      Sum ds;
      for (int64_t n = 0; n < item.out; ++n) {
        ds.add(item.scaling * item.dy.value[m * item.out + n] * item.b.value[n * item.rank + r]);
      }
      expected.ds.push_back(ds);
    }
  }
  check_dx(item, expected, where);
  for (int64_t r = 0; r < item.rank; ++r) {
    for (int64_t k = 0; k < item.in; ++k) {
      Sum da;
      for (int64_t m = 0; m < item.rows; ++m) {
        da.add(item.kept(m, k) * item.x.value[m * item.in + k], expected.ds[m * item.rank + r]);
      }
      if (!close(item, item.da, r * item.in + k, da, 0.0, "da", where)) return;
    }
    for (int64_t n = 0; n < item.out; ++n) {
      Sum db;
      for (int64_t m = 0; m < item.rows; ++m) {
        db.add(item.scaling * item.dy.value[m * item.out + n], expected.h[m * item.rank + r]);
      }
      if (!close(item, item.db, n * item.rank + r, db, 0.0, "db", where)) return;
    }
  }
}

}  // namespace

void check_linear(uint64_t seed, const std::string& where, const Threads& threads) {
  Random random(seed);
  LinearCase item = random_case(random);
  const std::vector<double> exact = item.x.value;
  Expected expected;
  if (item.is_w8a8) quantize(item, where, threads);
  forward(item, exact, expected, where, threads);
  backward(item, expected, where, threads);
}

}  // namespace ftrt::test
