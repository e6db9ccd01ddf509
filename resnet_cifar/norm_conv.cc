// The kernels of `norm_conv` (norm_conv.py) for XLA's CPU backend: relu(scale * x + bias +
// shortcut), convolved 3x3 with padding 1 and stride 1 or 2, with the moments of the result; and
// the gradient of all of it. Images are [height][width][channels].
//
// Each image is fetched from memory once and written once. `fill` copies it, with all that has to
// be done to it on the way, into a buffer with a border of zeros, which stays in the cache. The
// convolution runs over that buffer, and what it computes is finished (rounded, masked, summed)
// right there.
//
// The convolution is Winograd's F(2x2, 3x3) (Lavin and Gray 2015, arXiv:1509.09308): 16 products
// for four outputs instead of 36. A tile is 2 x 2 outputs and needs 4 x 4 inputs. Inputs and kernel
// are transformed to 4 x 4 entries. For each entry, tiles [tile][c] times kernel [c][c2] is a
// product of matrices. The 16 products of a tile are transformed to its outputs.
//
// Images are stored as float or bfloat16. All products and sums are in float32.
//
// Images are dealt to a fixed number of tasks, each with sums of its own, which are then added in
// order. So the result has the same bits for any number of threads.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
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
// Tiles by two vectors of channels: in most blocks, and in the last ones.
constexpr int kMost = kMany ? 8 : 6, kFew = kMany ? 8 : 4;
constexpr int kChannels = kMany ? 8 : 4;  // Of a kernel's gradient, by two vectors.
constexpr int64_t kTiles = 32;            // Transformed at a time: they stay in the cache.
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

// Runs work(first image, end, sums) in clamp(images / 8, 1, 32) tasks, each with `size` sums of its
// own. Returns the totals.
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

// One image, [row][vector of channels][column][lane], with a border of zeros: one pixel above and
// left, two below and right, where the last tile of an odd size ends.
class Buffer {
 public:
  Buffer(int64_t h, int64_t w, int64_t c)
      : depth(c), vectors((c + kLanes - 1) / kLanes), row((w + 3) * kLanes),
        lines_((h + 3) * vectors * row / 16 + 1) {}
  float* at(int64_t y, int64_t vector, int64_t x) {
    return floats(lines_) + (y * vectors + vector) * row + x * kLanes;
  }
  int64_t line() const { return vectors * row; }  // From one row to the next.
  const int64_t depth, vectors, row;  // Depth: channels.

 private:
  std::vector<Line> lines_;
};

// Fills every `stride`-th pixel of a buffer with value(offset in the image, channel), a vector.
// What loops use is passed by value, or copied: GCC would load it again after every store, as any
// store may change what a reference points to.
template <typename T, typename Value>
void fill(const Shape s, Buffer& buffer, int64_t stride, const Value value) {
  for (int64_t y = 0; y < s.h; ++y)
    for (int64_t c = 0; c < s.c; c += kLanes) {
      float* to = buffer.at(y * stride + 1, c / kLanes, 1);
      for (int64_t x = 0; x < s.w; ++x, to += stride * kLanes)
        store(to, rounded<T>(value((y * s.w + x) * s.c + c, c)));
    }
}

// Loads a vector of channels of an image that may have fewer.
template <typename T>
Vector load_some(const T* from, int64_t count) {
  if (count >= kLanes) return load(from);
  T some[kLanes] = {};
  std::copy_n(from, count, some);
  return load(some);
}

// ---- Winograd's transforms

// A tile's outputs are A' (sum over channels of (G g G') * (B' d B)) A, with its 4 x 4 pixels d and
// the kernel's 3 x 3 entries g. kPixels is B', kOutputs A', and kKernel G. The kernel's gradient
// goes back by the transposed matrices. The input's is a convolution with the flipped kernel.
constexpr float kPixels[4][4] = {{1, 0, -1, 0}, {0, 1, 1, 0}, {0, -1, 1, 0}, {0, 1, 0, -1}};
constexpr float kOutputs[2][4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};
constexpr float kOutputsTransposed[4][2] = {{1, 0}, {1, 1}, {1, -1}, {0, -1}};
constexpr float kKernel[4][3] = {{1, 0, 0}, {.5, .5, .5}, {.5, -.5, .5}, {0, 0, 1}};
constexpr float kKernelTransposed[3][4] = {{1, .5, .5, 0}, {0, .5, -.5, 0}, {0, .5, .5, 1}};

// y = m x m', without the products with zero.
template <const auto& m, int n, int k>
INLINE void transform(const Vector (&x)[k][k], Vector (&y)[n][n]) {
  static_assert(sizeof(m) == n * k * sizeof(float));
  const auto row = [](int i, auto at) __attribute__((always_inline)) {
    Vector sum;
    bool begun = false;
    UNROLL for (int j = 0; j < k; ++j)
      if (m[i][j] != 0) sum = begun ? sum + m[i][j] * at(j) : m[i][j] * at(j), begun = true;
    return sum;
  };
  Vector half[n][k];
  UNROLL for (int i = 0; i < n; ++i)
    UNROLL for (int j = 0; j < k; ++j) half[i][j] = row(i, [&](int l) { return x[l][j]; });
  UNROLL for (int i = 0; i < n; ++i)
    UNROLL for (int j = 0; j < n; ++j) y[i][j] = row(j, [&](int l) { return half[i][l]; });
}

// A kernel, transformed: [4][4][one or two vectors of c2][c][lane]. `flip` makes it the kernel of
// the input's gradient: both axes reversed, channels swapped.
template <typename T>
std::vector<Line> pack(const float* kernel, int64_t c, int64_t c2, bool flip) {
  std::vector<Line> packed(c * c2);
  for (int64_t o = 0; o < c2; o += kLanes)
    for (int64_t k = 0; k < c; ++k) {
      Vector g[3][3], u[4][4];
      for (int e = 0; e < 9; ++e) {
        float lanes[kLanes];
        for (int i = 0; i < kLanes; ++i) {
          const int64_t to = o + i;
          lanes[i] = kernel[flip ? ((8 - e) * c2 + to) * c + k : (e * c + k) * c2 + to];
        }
        g[e / 3][e % 3] = rounded<T>(load(lanes));
      }
      transform<kKernel>(g, u);
      const int64_t pair = o - o % (2 * kLanes), width = std::min<int64_t>(2 * kLanes, c2 - pair);
      for (int e = 0; e < 16; ++e)
        store(floats(packed) + (e * c2 + pair) * c + k * width + o - pair, u[e / 4][e % 4]);
    }
  return packed;
}

// The tiles of an image, and the entries of kTiles of them, before and after the product, in
// buffers whose rows are entries and whose columns are tiles.
struct Tiles {
  const int64_t h, w, across = (w + 1) / 2, number = (h + 1) / 2 * across;
  Buffer inputs, outputs;
  int64_t count, rows[kTiles], columns[kTiles];  // Of the current tiles: their number and places.

  Tiles(const Shape& s, int64_t c, int64_t c2)
      : h(s.h), w(s.w), inputs(16, std::min(kTiles, number), c),
        outputs(16, std::min(kTiles, number), c2) {}

  // Calls run() for each kTiles of the tiles.
  template <typename Run>
  void for_each(const Run& run) {
    for (int64_t first = 0; first < number; first += kTiles) {
      count = std::min(kTiles, number - first);
      for (int64_t t = 0; t < count; ++t)
        rows[t] = (first + t) / across * 2, columns[t] = (first + t) % across * 2;
      run();
    }
  }
  // Transforms the tiles of an image, or with n = 4 also the pixels around them, to entries.
  template <const auto& m, int n>
  void transform_all(Buffer& image, Buffer& to) {
    const int64_t border = n == 2, line = image.line(), entry = to.line();
    for (int64_t v = 0; v < image.vectors; ++v)
      for (int64_t t = 0; t < count; ++t) {
        Vector x[n][n], y[4][4];
        const float* const from = image.at(rows[t] + border, v, columns[t] + border);
        UNROLL for (int p = 0; p < n * n; ++p)
          x[p / n][p % n] = load(from + p / n * line + p % n * kLanes);
        transform<m>(x, y);
        float* const at = to.at(0, v, t);
        UNROLL for (int e = 0; e < 16; ++e) store(at + e * entry, y[e / 4][e % 4]);
      }
  }
};

// Calls run(entry) for all entries that are needed. With stride 2 a tile has only its first output,
// which depends on rows and columns 0 to 2 of the entries. In the input's gradient (`back`), every
// other pixel is a zero between those of dy, and so are row and column 0 of the entries.
template <typename Run>
void for_each_entry(int64_t stride, bool back, const Run& run) {
  const int64_t begin = back ? stride - 1 : 0, end = begin + 5 - stride;
  for (int64_t i = begin; i < end; ++i)
    for (int64_t j = begin; j < end; ++j) run(4 * i + j);
}

// ---- The products

// One entry of `count` tiles by `vectors` of channels, which stays in registers while the input's
// channels pass by. Unrolled: on a core that is shared by two threads, the instructions of the loop
// delay the FMAs.
template <int count, int vectors>
INLINE void multiply_block(const float* input, const float* kernel, int64_t row, int64_t depth,
                           float* output, int64_t output_row) {
  Vector sum[count][vectors] = {};
  for (int64_t k = 0; k < depth; k += kLanes, input += row) {
    const float *in = input, *const end = input + std::min<int64_t>(depth - k, kLanes);
    UNROLL_4 for (; in < end; ++in, kernel += vectors * kLanes)
      UNROLL for (int t = 0; t < count; ++t)
        UNROLL for (int u = 0; u < vectors; ++u)
          sum[t][u] += in[t * kLanes] * load(kernel + u * kLanes);
  }
  UNROLL for (int t = 0; t < count; ++t)
    UNROLL for (int u = 0; u < vectors; ++u) store(output + u * output_row + t * kLanes, sum[t][u]);
}

// One entry of all tiles.
void multiply(Tiles& tiles, int64_t e, const float* kernel) {
  Buffer &x = tiles.inputs, &y = tiles.outputs;
  const auto across = [&](auto most, auto few, auto vectors, int64_t o) {
    const auto run = [&](auto count, int64_t t) {
      multiply_block<count, vectors>(x.at(e, 0, t), kernel + (e * y.depth + o) * x.depth, x.row,
                                      x.depth, y.at(e, o / kLanes, t), y.row);
    };
    const int64_t count = tiles.count;
    int64_t t = 0;
    // With AVX2 32 tiles are 6 + 6 + 6 + 6 + 4 + 4, not 30 + 2.
    for (; t + most <= count && t + few + few != count; t += most) run(most, t);
    for (; t + few <= count; t += few) run(few, t);
    for (; t < count; ++t) run(Int<1>(), t);
  };
  int64_t o = 0;
  for (; o + 2 * kLanes <= y.depth; o += 2 * kLanes) across(Int<kMost>(), Int<kFew>(), Int<2>(), o);
  if (o < y.depth) across(Int<2 * kMost>(), Int<2 * kFew>(), Int<1>(), o);
}

// A convolution, or the input's gradient if `back`. Calls emit(offset in the result, channel,
// vector, two totals) and adds the totals to sums, [2][c].
template <typename Emit>
void convolve(Buffer& x, Tiles& tiles, const float* kernel, int64_t stride, bool back,
              float* sums, const Emit emit) {
  const bool halved = !back && stride == 2;
  const int64_t h = tiles.h, w = tiles.w, c = tiles.outputs.depth, entry = tiles.outputs.line();
  const int64_t row = (halved ? (w + 1) / 2 : w) * c;
  tiles.for_each([&] {
    tiles.transform_all<kPixels, 4>(x, tiles.inputs);
    for_each_entry(stride, back, [&](int64_t e) { multiply(tiles, e, kernel); });
    for (int64_t o = 0; o < c; o += kLanes) {
      const float* from = tiles.outputs.at(0, o / kLanes, 0);
      Vector totals[2] = {};
      for (int64_t t = 0; t < tiles.count; ++t, from += kLanes) {
        Vector m[4][4], y[2][2];
        UNROLL for (int e = 0; e < 16; ++e) m[e / 4][e % 4] = load(from + e * entry);
        transform<kOutputs>(m, y);
        const int64_t r = tiles.rows[t], i = tiles.columns[t];
        const int64_t at = (r >> halved) * row + (i >> halved) * c + o;
        UNROLL for (int p = 0; p < 2; ++p)
          UNROLL for (int q = 0; q < 2; ++q)
            if (r + p < h && i + q < w && !(halved && p + q))
              emit(at + p * row + q * c, o, y[p][q], totals);
      }
      vector_at(sums + o) += totals[0], vector_at(sums + c + o) += totals[1];
    }
  });
}

// Adds to one entry of a transformed kernel's gradient, [c][c2], what `count` tiles contribute, for
// `channels` of the input and `vectors` of the output.
template <int channels, int vectors>
void correlate_block(const float* x, const float* dy, int64_t row, int64_t count, float* kernel,
                     int64_t c2) {
  Vector sum[channels][vectors] = {};
  UNROLL_4 for (int64_t t = 0; t < count; ++t, x += kLanes, dy += kLanes) {
    Vector g[vectors];
    UNROLL for (int u = 0; u < vectors; ++u) g[u] = load(dy + u * row);
    UNROLL for (int q = 0; q < channels; ++q)
      UNROLL for (int u = 0; u < vectors; ++u) sum[q][u] += x[q] * g[u];
  }
  UNROLL for (int q = 0; q < channels; ++q)
    UNROLL for (int u = 0; u < vectors; ++u) vector_at(kernel + q * c2 + u * kLanes) += sum[q][u];
}

// Adds an image's part of the gradient of the transformed kernel, [entry][c][c2], where c is
// rounded up to vectors.
void correlate(Buffer& x, Buffer& dy, Tiles& tiles, int64_t stride, float* kernel) {
  const int64_t c = x.vectors * kLanes, c2 = dy.depth;
  tiles.for_each([&] {
    tiles.transform_all<kPixels, 4>(x, tiles.inputs);
    tiles.transform_all<kOutputsTransposed, 2>(dy, tiles.outputs);
    for_each_entry(stride, false, [&](int64_t e) {
      const auto across = [&](auto channels, auto vectors, int64_t o) {
        for (int64_t k = 0; k < c; k += channels)
          correlate_block<channels, vectors>(
              tiles.inputs.at(e, k / kLanes, 0) + k % kLanes, tiles.outputs.at(e, o / kLanes, 0),
              tiles.outputs.row, tiles.count, kernel + (e * c + k) * c2 + o, c2);
      };
      int64_t o = 0;
      for (; o + 2 * kLanes <= c2; o += 2 * kLanes) across(Int<kChannels>(), Int<2>(), o);
      if (o < c2) across(Int<2 * kChannels>(), Int<1>(), o);
    });
  });
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
    Buffer buffer(from.h, from.w, from.c);
    Tiles tiles(from, from.c, to.c);
    for (; n < end; ++n) {
      const int64_t image = n * from.image(), result = n * to.image();
      fill<T>(from, buffer, 1, [=](int64_t i, int64_t k) {
        if (!scale) return load_some(x + image + i, from.c - k);
        Vector v = load(x + image + i) * load(scale + k) + load(bias + k);
        if (shortcut) v += load(shortcut + image + i);
        if (joined) store(joined + image + i, relu(v));
        return relu(v);
      });
      const auto emit = [=](int64_t i, int64_t, Vector v, Vector (&totals)[2]) {
        store(y + result + i, v);
        totals[0] += v, totals[1] += v * v;
      };
      convolve(buffer, tiles, floats(packed), stride, false, sums, emit);
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
  const bool paired = !joined == !djoined && !scale == !daffine && (joined || !dshortcut) &&
                      (scale || !dx);
  if (!call.complete() || !dkernel || !paired || (scale && from.c == 3)) return unexpected();

  const float* const dsquare = dsum + to.c;
  std::vector<Line> flipped;
  if (scale) flipped = pack<T>(kernel, to.c, from.c, true);
  const auto work = [&](int64_t n, int64_t end, float* sums) {
    Buffer input(from.h, from.w, from.c), gradient(from.h, from.w, to.c);
    Tiles tiles(from, from.c, to.c), back(from, to.c, from.c);
    const int64_t size = input.vectors * kLanes * to.c;
    std::vector<Line> transformed(size);  // The kernel's gradient.
    for (; n < end; ++n) {
      const int64_t image = n * from.image(), result = n * to.image();
      // The gradient of y itself, with what its moments add.
      fill<T>(to, gradient, stride, [=](int64_t i, int64_t k) {
        const int64_t at = result + i;
        return load(dy + at) + load(dsum + k) + 2 * load(y + at) * load(dsquare + k);
      });
      // What was convolved: stored, or computed again.
      fill<T>(from, input, 1, [=](int64_t i, int64_t k) {
        if (!scale) return load_some(x + image + i, from.c - k);
        if (joined) return load(joined + image + i);
        return relu(load(x + image + i) * load(scale + k) + load(bias + k));
      });
      correlate(input, gradient, tiles, stride, floats(transformed));
      if (!scale) continue;
      // The gradient of what was convolved, on through ReLU, shortcut and affine.
      const auto emit = [=](int64_t i, int64_t o, Vector v, Vector (&totals)[2]) {
        const int64_t at = image + i;
        const Vector value = load(x + at);
        const Vector before = value * load(scale + o) + load(bias + o);
        const Vector whole = joined ? v + load(djoined + at) : v;
        const Vector g = (joined ? load(joined + at) : before) > 0.0f ? whole : Vector{};
        totals[0] += g * value, totals[1] += g;
        store(dx + at, g * load(scale + o));
        if (dshortcut) store(dshortcut + at, g);
      };
      convolve(gradient, back, floats(flipped), stride, true, sums + entries, emit);
    }
    for (int64_t i = 0; i < from.c * to.c; i += kLanes) {
      Vector u[4][4], g[3][3];
      for (int e = 0; e < 16; ++e) u[e / 4][e % 4] = load(floats(transformed) + e * size + i);
      transform<kKernelTransposed>(u, g);
      for (int e = 0; e < 9; ++e) store(sums + e * from.c * to.c + i, g[e / 3][e % 3]);
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
