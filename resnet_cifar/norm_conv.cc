// The kernels of `norm_conv` (norm_conv.py) for XLA's CPU backend: relu(scale * x + bias +
// shortcut), convolved 3x3 with padding 1 and stride 1 or 2, with the moments of the result; and
// the gradient of all of it. Images are [height][width][channels].
//
// Each image is read once and written once. `fill` copies it, with all that has to be done to it
// on the way, into a buffer with a border of zeros, which stays in the cache. The convolution runs
// over that buffer. Its vectors are output channels. A block of neighboring pixels by one or two
// vectors stays in registers while input channels and kernel entries pass by, and what leaves the
// registers is finished (rounded, masked, summed) right there.
//
// Images are stored as float or bfloat16. All products and sums are in float32.
//
// Images are dealt to a fixed number of tasks, each with sums of its own, which are then added in
// order. So the result has the same bits for any number of threads.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <vector>

#include "xla/ffi/api/ffi.h"

#ifndef LANES
#define LANES 8  // Floats in a register: 8 with AVX2, 16 with AVX-512.
#endif
#ifdef __clang__
#define UNROLL _Pragma("clang loop unroll(full)")
#define UNROLL_4 _Pragma("clang loop unroll_count(4)")
#else
#define UNROLL _Pragma("GCC unroll 64")
#define UNROLL_4 _Pragma("GCC unroll 4")
#endif
#define INLINE inline __attribute__((always_inline))  // Else arrays of vectors leave the registers.

namespace ffi = xla::ffi;

namespace {

// ---- Vectors

constexpr int kLanes = LANES;
// Blocks that fit the registers: 32 of them with AVX-512, else 16.
constexpr bool kMany = kLanes == 16;
// Pixels of a convolution, by two vectors of channels: in most blocks, and at the end of a row.
constexpr int kMost = kMany ? 8 : 6, kFew = kMany ? 8 : 4;
constexpr int kChannels = kMany ? 4 : 2;  // Of a kernel's gradient, by two vectors and 3 columns.
typedef float Vector __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

struct bfloat16 {
  uint16_t bits;  // The upper half of a float.
};
template <int n>
using Int = std::integral_constant<int, n>;

inline Vector& vector_at(float* p) { return *(Vector*)p; }
inline Vector widen(Halves h) { return (Vector)(__builtin_convertvector(h, Words) << 16); }
inline Halves round(Vector v) {  // To the nearest bfloat16, ties to even.
  const Words bits = (Words)v, rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return __builtin_convertvector((v == v ? rounded : bits | 0x400000) >> 16, Halves);
}
inline Vector load(const float* p) { return *(const Vector*)p; }
inline Vector load(const bfloat16* p) { return widen(*(const Halves*)p); }
inline void store(float* p, Vector v) { vector_at(p) = v; }
inline void store(bfloat16* p, Vector v) { *(Halves*)p = round(v); }
inline Vector relu(Vector v) { return v <= 0.0f ? Vector{} : v; }  // NaN stays NaN.

template <typename T>
Vector rounded(Vector v) {  // What a load gives after a store.
  return std::is_same_v<T, float> ? v : widen(round(v));
}

struct alignas(64) Line {  // Of the cache. A vector that lies in two lines is loaded twice.
  float floats[16];
};
inline float* floats(std::vector<Line>& lines) { return reinterpret_cast<float*>(lines.data()); }

// ---- Threads

// Runs work(i) for each i < n, on this thread and on those of the pool that come in time. Never
// waits for a task that has not begun: all threads of the pool may be waiting in calls like this.
template <typename Work>
void parallel(ffi::ThreadPool pool, int64_t n, const Work& work) {
  struct Shared {
    std::atomic<int64_t> next, left;
  };
  const std::shared_ptr<Shared> shared(new Shared{0, n});
  const auto run = [shared, n, &work] {  // `work` lives as long as an index is left.
    for (int64_t i; (i = shared->next++) < n;) {
      work(i);
      if (--shared->left == 0) shared->left.notify_all();
    }
  };
  for (int64_t t = 1; t < std::min<int64_t>(n, pool.num_threads()); ++t)
    pool.Schedule([run] { run(); });
  run();
  for (int64_t left; (left = shared->left) > 0;) shared->left.wait(left);
}

// Runs work(first image, end, sums) in a task for every 8 images, but in 1 to 32; each has `size`
// sums of its own. Returns the totals.
template <typename Work>
std::vector<float> sum_over(ffi::ThreadPool pool, int64_t images, int64_t size, const Work& work) {
  const int64_t tasks = std::clamp<int64_t>(images / 8, 1, 32);
  std::vector<std::vector<float>> parts(tasks, std::vector<float>(size));
  parallel(pool, tasks, [&](int64_t t) {
    work(images * t / tasks, images * (t + 1) / tasks, parts[t].data());
  });
  for (int64_t t = 1; t < tasks; ++t)
    for (int64_t i = 0; i < size; ++i) parts[0][i] += parts[t][i];
  return parts[0];
}

// ---- Images

struct Shape {
  int64_t n, h, w, c;
  int64_t image() const { return h * w * c; }
  int64_t size() const { return n * image(); }
};

// One image with a border of zeros, one pixel wide: [row][vector of channels][column][lane].
class Buffer {
 public:
  explicit Buffer(const Shape& s)
      : depth(s.c), vectors((s.c + kLanes - 1) / kLanes), row((s.w + 2) * kLanes),
        lines_((s.h + 2) * vectors * row / 16 + 1) {}
  float* at(int64_t y, int64_t vector, int64_t x) {
    return floats(lines_) + (y * vectors + vector) * row + x * kLanes;
  }
  const int64_t depth, vectors, row;  // Depth: channels.

 private:
  std::vector<Line> lines_;
};

// Fills a buffer with value(offset in the image, channel), a vector.
template <typename T, typename Value>
void fill(const Shape& s, Buffer& buffer, const Value& value) {
  for (int64_t y = 0; y < s.h; ++y)
    for (int64_t v = 0; v * kLanes < s.c; ++v)
      for (int64_t x = 0; x < s.w; ++x)
        store(buffer.at(y + 1, v, x + 1),
              rounded<T>(value((y * s.w + x) * s.c + v * kLanes, v * kLanes)));
}

// Loads a vector of channels of an image that may have fewer.
template <typename T>
Vector load_some(const T* from, int64_t count) {
  if (count >= kLanes) return load(from);
  T some[kLanes] = {};
  std::copy_n(from, count, some);
  return load(some);
}

// ---- The convolution

// A kernel as `block` reads it: [one or two vectors of c2][row][column][c][lane]. `flip` makes it
// the kernel of the input's gradient: both axes reversed, channels swapped.
template <typename T>
std::vector<Line> pack(const float* kernel, int64_t c, int64_t c2, bool flip) {
  std::vector<Line> packed(9 * c * c2 / 16 + 1);
  float* next = floats(packed);
  for (int64_t o = 0, end; o < c2; o = end) {
    end = std::min(o + 2 * kLanes, c2);
    for (int64_t entry = 0; entry < 9; ++entry)
      for (int64_t k = 0; k < c; ++k)
        for (int64_t i = o; i < end; ++i) {
          const float value =
              flip ? kernel[((8 - entry) * c2 + i) * c + k] : kernel[(entry * c + k) * c2 + i];
          *next++ = rounded<T>(Vector{value})[0];
        }
  }
  return packed;
}

// An entry of the kernel, 0 to 8, and the pixel of the buffer that it multiplies for the first
// output of a line.
struct Tap {
  int64_t entry, row, column;
};
using Taps = std::span<const Tap>;

// `pixels` neighboring outputs by `vectors` of channels, from output i of the line on: the sum over
// taps and input channels. Neighboring outputs read inputs that are `step` apart. Unrolled: where
// two threads share a core, the FMAs wait for the other instructions.
template <int step, int pixels, int vectors>
INLINE void block(Buffer& x, Taps taps, int64_t i, const float* kernel,
                  Vector (&sum)[pixels][vectors]) {
  const int64_t lanes = std::min<int64_t>(x.depth, kLanes);
  for (const Tap& tap : taps) {
    const float* weights = kernel + tap.entry * x.depth * vectors * kLanes;
    for (int64_t v = 0; v < x.vectors; ++v) {
      const float *input = x.at(tap.row, v, tap.column + i * step), *const end = input + lanes;
      UNROLL_4 for (; input < end; ++input, weights += vectors * kLanes)
        UNROLL for (int p = 0; p < pixels; ++p)
          UNROLL for (int u = 0; u < vectors; ++u)
            sum[p][u] += input[p * step * kLanes] * load(weights + u * kLanes);
    }
  }
}

// Computes columns begin, begin + apart, ... of row r of the outputs, a block at a time:
// emit(offset in the image, from one pixel to the next, channel, sum).
template <int step, typename Emit>
void line(Buffer& x, Taps taps, const float* kernel, const Shape& out, int64_t r, int64_t begin,
          int64_t apart, const Emit& emit) {
  const auto run = [&](auto pixels, auto vectors, int64_t i, int64_t o) {
    Vector sum[pixels][vectors] = {};
    block<step>(x, taps, i, kernel + o * 9 * x.depth, sum);
    emit((r * out.w + begin + i * apart) * out.c + o, apart * out.c, o, sum);
  };
  const auto across = [&](auto most, auto few, auto vectors, int64_t o) {
    const int64_t width = (out.w - begin + apart - 1) / apart;
    int64_t i = 0;
    // With AVX2 32 pixels are 6 + 6 + 6 + 6 + 4 + 4, not 30 + 2.
    for (; i + most <= width && i + few + few != width; i += most) run(most, vectors, i, o);
    for (; i + few <= width; i += few) run(few, vectors, i, o);
    for (; i < width; ++i) run(Int<1>(), vectors, i, o);
  };
  int64_t o = 0;
  for (; o + 2 * kLanes <= out.c; o += 2 * kLanes) across(Int<kMost>(), Int<kFew>(), Int<2>(), o);
  if (o < out.c) across(Int<2 * kMost>(), Int<2 * kFew>(), Int<1>(), o);
}

template <int stride, typename Emit>
void convolve(Buffer& x, const float* kernel, const Shape& out, const Emit& emit) {
  for (int64_t r = 0; r < out.h; ++r) {
    Tap taps[9];
    for (int64_t e = 0; e < 9; ++e) taps[e] = {e, r * stride + e / 3, e % 3};
    line<stride>(x, taps, kernel, out, r, 0, 1, emit);
  }
}

// The gradient of the input of a convolution of stride 2: the convolution of dy, with zeros between
// its pixels, with the flipped kernel, but without the products with those zeros. An even row or
// column meets only the middle of the kernel, an odd one the two others.
template <typename Emit>
void spread(Buffer& dy, const float* kernel, const Shape& out, const Emit& emit) {
  for (int64_t r = 0; r < out.h; ++r)
    for (int64_t begin = 0; begin < 2; ++begin) {
      Tap taps[4];
      int count = 0;
      for (int64_t e = 0; e < 9; ++e)
        if (const int64_t y = r + e / 3, x = begin + e % 3; y % 2 && x % 2)
          taps[count++] = {e, (y + 1) / 2, (x + 1) / 2};
      line<1>(dy, {taps, taps + count}, kernel, out, r, begin, 2, emit);
    }
}

// ---- The kernel's gradient

// Adds to row i of the kernel's gradient, [3][3][c][out.c], what 8 rows of outputs contribute: all
// three columns, for `channels` of the input and `vectors` of the output, stay in registers.
template <int channels, int vectors>
void correlate_rows(Buffer& x, Buffer& dy, int stride, int64_t from, int64_t i, int64_t k,
                    int64_t o, int64_t c, const Shape& out, float* kernel) {
  Vector sum[3][channels][vectors] = {};
  for (int64_t r = from; r < std::min(out.h, from + 8); ++r) {
    const float* in = x.at(r * stride + i, k / kLanes, 0) + k % kLanes;
    const float* gradient = dy.at(r + 1, o / kLanes, 1);
    UNROLL_4 for (int64_t p = 0; p < out.w; ++p) {
      Vector g[vectors];
      UNROLL for (int u = 0; u < vectors; ++u) g[u] = load(gradient + u * dy.row);
      UNROLL for (int j = 0; j < 3; ++j)
        UNROLL for (int q = 0; q < channels; ++q)
          UNROLL for (int u = 0; u < vectors; ++u) sum[j][q][u] += in[j * kLanes + q] * g[u];
      in += stride * kLanes, gradient += kLanes;
    }
  }
  UNROLL for (int j = 0; j < 3; ++j)
    UNROLL for (int q = 0; q < channels; ++q)
      UNROLL for (int u = 0; u < vectors; ++u)
        vector_at(kernel + ((3 * i + j) * c + k + q) * out.c + o + u * kLanes) += sum[j][q][u];
}

// The same for a whole image. c is 3 or a multiple of kLanes.
void correlate(Buffer& x, Buffer& dy, int stride, int64_t c, const Shape& out, float* kernel) {
  for (int64_t from = 0; from < out.h; from += 8)  // As many rows as stay in the first cache.
    for (int64_t i = 0; i < 3; ++i) {
      const auto across = [&](auto channels, auto vectors, int64_t o) {
        for (int64_t k = 0; k < c; k += channels)
          correlate_rows<channels, vectors>(x, dy, stride, from, i, k, o, c, out, kernel);
      };
      int64_t o = 0;
      for (; c == 3 && o < out.c; o += kLanes) across(Int<3>(), Int<1>(), o);
      for (; o + 2 * kLanes <= out.c; o += 2 * kLanes) across(Int<kChannels>(), Int<2>(), o);
      if (o < out.c) across(Int<2 * kChannels>(), Int<1>(), o);
    }
}

// ---- The two calls

// Hands out arguments and results one after the other, null for those that are not there, and
// checks their types and sizes.
struct Call {
  ffi::RemainingArgs args;
  ffi::RemainingRets rets;
  Shape from{}, to{};  // Of x and y.
  bool ok = false;
  size_t arg = 0, ret = 0;

  Call(ffi::RemainingArgs args, ffi::RemainingRets rets, int64_t stride) : args(args), rets(rets) {
    const auto x = args.get<ffi::AnyBuffer>(0), kernel = args.get<ffi::AnyBuffer>(1);
    ok = x && kernel && x->dimensions().size() == 4 && kernel->dimensions().size() == 4 &&
         (stride == 1 || stride == 2);
    if (!ok) return;
    const auto d = x->dimensions();
    from = {d[0], d[1], d[2], d[3]};
    to = {d[0], (d[1] - 1) / stride + 1, (d[2] - 1) / stride + 1, kernel->dimensions()[3]};
    ok = to.c % kLanes == 0 && (from.c == 3 || from.c % kLanes == 0) && from.size() > 0;
  }
  template <typename T>
  T* check(const ffi::AnyBuffer& buffer, size_t size) {
    constexpr auto type = std::is_same_v<T, float> ? ffi::DataType::F32 : ffi::DataType::BF16;
    ok = ok && buffer.element_type() == type && buffer.element_count() == size;
    return static_cast<T*>(buffer.untyped_data());
  }
  template <typename T>
  const T* in(size_t size) {
    return arg < args.size() ? check<T>(*args.get<ffi::AnyBuffer>(arg++), size) : nullptr;
  }
  template <typename T>
  T* out(size_t size) {
    return ret < rets.size() ? check<T>(**rets.get<ffi::AnyBuffer>(ret++), size) : nullptr;
  }
  bool complete() const { return ok && arg == args.size() && ret == rets.size(); }
};

ffi::Error unexpected() {
  return ffi::Error::InvalidArgument("norm_conv: arguments of unexpected types or shapes");
}

// x, kernel[, affine[, shortcut]] -> y, its moments[, what was convolved]
template <typename T>
ffi::Error Forward(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                   int64_t stride) {
  Call call(args, rets, stride);
  const Shape from = call.from, to = call.to;
  const T* const x = call.in<T>(from.size());
  const float* const kernel = call.in<float>(9 * from.c * to.c);
  const float* const scale = call.in<float>(2 * from.c);
  const float* const bias = scale ? scale + from.c : nullptr;
  const T* const shortcut = call.in<T>(from.size());
  T* const y = call.out<T>(to.size());
  float* const moments = call.out<float>(2 * to.c);
  T* const joined = call.out<T>(from.size());
  if (!call.complete() || !moments || (scale ? from.c == 3 : !!joined)) return unexpected();

  auto packed = pack<T>(kernel, from.c, to.c, false);
  const auto work = [&](int64_t n, int64_t end, float* sums) {
    Buffer buffer(from);
    for (; n < end; ++n) {
      const int64_t image = n * from.image();
      fill<T>(from, buffer, [&](int64_t i, int64_t k) {
        if (!scale) return load_some(x + image + i, from.c - k);
        Vector v = load(x + image + i) * load(scale + k) + load(bias + k);
        if (shortcut) v += load(shortcut + image + i);
        if (joined) store(joined + image + i, relu(v));
        return relu(v);
      });
      const auto emit = [&]<int pixels, int vectors>(int64_t i, int64_t next, int64_t o,
                                                     Vector (&sum)[pixels][vectors]) {
        UNROLL for (int u = 0; u < vectors; ++u, i += kLanes, o += kLanes) {
          Vector total = {}, squares = {};
          UNROLL for (int p = 0; p < pixels; ++p) {
            store(y + n * to.image() + i + p * next, sum[p][u]);
            total += sum[p][u], squares += sum[p][u] * sum[p][u];
          }
          vector_at(sums + o) += total, vector_at(sums + to.c + o) += squares;
        }
      };
      if (stride == 1) convolve<1>(buffer, floats(packed), to, emit);
      else convolve<2>(buffer, floats(packed), to, emit);
    }
  };
  std::ranges::copy(sum_over(pool, from.n, 2 * to.c, work), moments);
  return ffi::Error::Success();
}

// x, kernel, y, dy, the moments' gradient[, affine[, what was convolved, its other gradient]]
// -> the gradients of the kernel[, of x, of affine[, of the shortcut]]
template <typename T>
ffi::Error Backward(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets,
                    int64_t stride) {
  Call call(args, rets, stride);
  const Shape from = call.from, to = call.to;
  const int64_t entries = 9 * from.c * to.c;
  const T* const x = call.in<T>(from.size());
  const float* const kernel = call.in<float>(entries);
  const T *const y = call.in<T>(to.size()), *const dy = call.in<T>(to.size());
  const float* const dsum = call.in<float>(2 * to.c);
  const float* const scale = call.in<float>(2 * from.c);
  const float* const bias = scale ? scale + from.c : nullptr;
  const T *const joined = call.in<T>(from.size()), *const djoined = call.in<T>(from.size());
  float* const dkernel = call.out<float>(entries);
  T* const dx = call.out<T>(from.size());
  float* const daffine = call.out<float>(2 * from.c);
  T* const dshortcut = call.out<T>(from.size());
  const bool paired = !joined == !djoined && !scale == !daffine && (joined || !dshortcut);
  if (!call.complete() || !dkernel || !paired || (scale && from.c == 3)) return unexpected();

  const float* const dsquare = dsum + to.c;
  auto flipped = pack<T>(kernel, to.c, from.c, true);
  const auto work = [&](int64_t n, int64_t end, float* sums) {
    float *const dscale = sums + entries, *const dbias = scale ? dscale + from.c : dscale;
    Buffer input(from), gradient(to);
    for (; n < end; ++n) {
      const int64_t image = n * from.image();
      // The gradient of y itself, with what its moments add.
      fill<T>(to, gradient, [&](int64_t i, int64_t k) {
        const int64_t at = n * to.image() + i;
        return load(dy + at) + load(dsum + k) + 2 * load(y + at) * load(dsquare + k);
      });
      // What was convolved: stored, or computed again.
      fill<T>(from, input, [&](int64_t i, int64_t k) {
        if (!scale) return load_some(x + image + i, from.c - k);
        if (joined) return load(joined + image + i);
        return relu(load(x + image + i) * load(scale + k) + load(bias + k));
      });
      correlate(input, gradient, stride, from.c, to, sums);
      if (!scale) continue;
      // The gradient of what was convolved, on through ReLU, shortcut and affine.
      const auto emit = [&]<int pixels, int vectors>(int64_t i, int64_t next, int64_t o,
                                                     Vector (&sum)[pixels][vectors]) {
        UNROLL for (int u = 0; u < vectors; ++u, i += kLanes, o += kLanes) {
          Vector total = {}, products = {};
          UNROLL for (int p = 0; p < pixels; ++p) {
            const int64_t at = image + i + p * next;
            const Vector value = load(x + at);
            const Vector before = value * load(scale + o) + load(bias + o);
            const Vector whole = joined ? sum[p][u] + load(djoined + at) : sum[p][u];
            const Vector g = (joined ? load(joined + at) : before) > 0.0f ? whole : Vector{};
            total += g, products += g * value;
            store(dx + at, g * load(scale + o));
            if (dshortcut) store(dshortcut + at, g);
          }
          vector_at(dbias + o) += total, vector_at(dscale + o) += products;
        }
      };
      if (stride == 1) convolve<1>(gradient, floats(flipped), from, emit);
      else spread(gradient, floats(flipped), from, emit);
    }
  };
  const auto sums = sum_over(pool, from.n, entries + (scale ? 2 * from.c : 0), work);
  std::copy_n(sums.begin(), entries, dkernel);
  if (scale) std::copy(sums.begin() + entries, sums.end(), daffine);
  return ffi::Error::Success();
}

}  // namespace

#define HANDLER(name, ...)                                                                      \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, __VA_ARGS__,                                             \
                                ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs()         \
                                    .RemainingRets().Attr<int64_t>("stride"))
HANDLER(forward_float32, Forward<float>);
HANDLER(forward_bfloat16, Forward<bfloat16>);
HANDLER(backward_float32, Backward<float>);
HANDLER(backward_bfloat16, Backward<bfloat16>);
