// The peak of float32 FMAs with AVX2, as JSON: each thread multiplies and adds in 12 registers.
//
//     c++ -std=c++20 -O2 -march=x86-64-v3 -pthread benchmarks/fma_peak.cc -o fma_peak && ./fma_peak
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <vector>

typedef float Vector __attribute__((vector_size(32)));
constexpr int kSums = 12, kLanes = 8, kTurns = 20;
constexpr long kLoops = 20'000'000;

#define EACH_SUM _Pragma("GCC unroll 16") for (int k = 0; k < kSums; ++k)

void work() {
  Vector sum[kSums] = {}, a = Vector{} + 1e-9f;
  EACH_SUM asm volatile("" : "+x"(sum[k]));  // Else the compiler sees that all sums are equal,
  for (long i = 0; i < kLoops; ++i) {
    EACH_SUM sum[k] += a * sum[k];
    asm volatile("" : "+x"(a));  // and computes the loop in advance.
  }
  EACH_SUM asm volatile("" ::"x"(sum[k]));
}

int main() {
  const unsigned threads = std::thread::hardware_concurrency();
  double seconds = 1e9;
  for (int turn = 0; turn < kTurns; ++turn) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::jthread> pool;
    for (unsigned t = 0; t < threads; ++t) pool.emplace_back(work);
    pool.clear();
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    seconds = std::min(seconds, passed.count());
  }
  const double gflops = 2e-9 * kSums * kLanes * kLoops * threads / seconds;
  std::printf("{\"threads\": %u, \"gflops\": %.1f, \"turns\": %d}\n", threads, gflops, kTurns);
}
