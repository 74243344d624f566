// The operators of the CPU: pairs from given costs, the training block from embeddings, a gallery from embeddings.
//
// Work is cut into items whose number depends on the sizes alone, so any number of threads gives the same bits. The
// matrix products are the framework's; their results stay in the second-level cache until the recursion has used them.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm_cpu_dispatch.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <string>

#include "solve.h"

namespace finepseudo {

std::atomic<int64_t> solved_by[3];

void count(const int64_t* solved) {
  for (int step = 0; step < 3; ++step)
    if (solved[step]) solved_by[step].fetch_add(solved[step], std::memory_order_relaxed);
}

// ---------------------------------------------------------------------------------------------- pairs, given costs

// Where the costs of one pair lie, and where its value and gradient go.
template <class Real>
struct Pair {
  const Real* source;
  int64_t stride;
  int t, u;
  Real* dist;
  Real* gradient;  // [t][u], or null
  int64_t gradient_stride;
};

template <class Real>
struct PairJob {
  const Pair<Real>* pairs;
  int64_t count;
  int T, U;
  double gamma;
  bool dot;  // the source holds <u,v>, the cost is 1 less
  bool gradient;
};

// Rows of four numbers each, turned: row r becomes column r of `to`. Lanes are turned into and out of tiles by it.
template <class Real>
INLINE void turn(const Real* a, const Real* b, const Real* c, const Real* d, Real* to, int64_t stride) {
  const Real* const from[] = {a, b, c, d};
  for (int r = 0; r < 4; ++r)
    for (int k = 0; k < 4; ++k) to[k * stride + r] = from[r][k];
}

#if defined(__SSE__)
template <>
INLINE void turn<float>(const float* a, const float* b, const float* c, const float* d, float* to, int64_t stride) {
  __m128 w = _mm_loadu_ps(a), x = _mm_loadu_ps(b), y = _mm_loadu_ps(c), z = _mm_loadu_ps(d);
  _MM_TRANSPOSE4_PS(w, x, y, z);
  _mm_storeu_ps(to, w);
  _mm_storeu_ps(to + stride, x);
  _mm_storeu_ps(to + 2 * stride, y);
  _mm_storeu_ps(to + 3 * stride, z);
}
#endif

template <class Real>
struct Emit {
  const Pair<Real>* const* pairs;
  const Real* tile;
  const Lanes& n;

  // Cells outside a pair's lengths keep the zeros that they were made with.
  void lanes(Mask which) const {
    for (int t = 0; t < n.T; ++t) {
      const Real* row = tile + int64_t(t) * n.U * LANES;
      for (int l = 0; l < LANES; l += 4) {
        int u = 0;
        if (n.equal && (which >> l & 15) == 15)
          for (; u + 4 <= n.U; u += 4) {
            const Real* from = row + u * LANES + l;
            Real block[16];
            turn(from, from + LANES, from + 2 * LANES, from + 3 * LANES, block, 4);
            for (int k = 0; k < 4; ++k) std::memcpy(target(l + k, t) + u, block + 4 * k, 4 * sizeof(Real));
          }
        for (int k = l; k < l + 4; ++k)
          if (which >> k & 1 && t < n.t[k])
            for (int v = u; v < n.u[k]; ++v) target(k, t)[v] = row[v * LANES + k];
      }
    }
  }

  Real* target(int l, int t) const { return pairs[l]->gradient + t * pairs[l]->gradient_stride; }
};

// Bring sixteen pairs side by side: cells outside the lengths cost infinity, so that no path goes there.
template <class Real>
void gather(const PairJob<Real>& job, const Pair<Real>* const* pairs, const Lanes& n, Real* tile) {
  for (int t = 0; t < n.T; ++t) {
    Real* row = tile + int64_t(t) * n.U * LANES;
    for (int l = 0; l < LANES; l += 4) {
      const Real* from[4];
      for (int k = 0; k < 4; ++k) from[k] = pairs[l + k]->source + t * pairs[l + k]->stride;
      int u = 0;
      if (n.equal)
        for (; u + 4 <= n.U; u += 4)
          turn(from[0] + u, from[1] + u, from[2] + u, from[3] + u, row + u * LANES + l, LANES);
      for (int k = 0; k < 4; ++k) {
        const int inside = t < n.t[l + k] ? n.u[l + k] : 0;
        for (int v = u; v < n.U; ++v)
          row[v * LANES + l + k] = v < inside                 ? from[k][v]
                                   : job.dot /* 1 - that */ ? -std::numeric_limits<Real>::infinity()
                                                            : std::numeric_limits<Real>::infinity();
      }
    }
    if (job.dot)
      for (int at = 0; at < n.U * LANES; ++at) row[at] = 1 - row[at];
  }
}

// Lanes with NaN or an infinity inside their lengths, and how far below 0 the costs of the others go.
template <int B, class Real>
INLINE void inspect(const Group& g, const Real* tile, Mask* odd, double* below) {
  typedef typename Isa<B>::d d;
  double least[LANES], poison[LANES];
  for (int l = 0; l < LANES; l += Isa<B>::W) {
    d low{}, nothing{};
    for (int i = 0; i < g.n.T; ++i)
      for (int j = 0; j < g.n.U; ++j) {
        d c = load<B>(tile + (int64_t(i) * g.n.U + j) * LANES + l);
        if (!g.n.equal)
          for (int k = 0; k < Isa<B>::W; ++k)
            if (i >= g.n.t[l + k] || j >= g.n.u[l + k]) c[k] = 0;
        low = c < low ? c : low;
        nothing += c * 0.0;  // NaN for NaN and for an infinity
      }
    store<B>(least + l, low);
    store<B>(poison + l, nothing);
  }
  *odd = 0;
  *below = 0;
  for (int l = 0; l < LANES; ++l) {
    if (poison[l] != 0) *odd |= Mask(1) << l;
    else *below = std::max(*below, -least[l]);
  }
}

template <int B, class Real>
INLINE void run_pairs(const PairJob<Real>& job, int64_t begin, int64_t end) {
  Work work(job.T, job.U, job.gradient);
  std::vector<Real> costs(size_t(job.T) * job.U * LANES), shares(job.gradient ? costs.size() : 0);
  bool unlikely = false;
  int64_t tried = 0;
  for (int64_t first = begin * LANES; first < std::min(end * LANES, job.count); first += LANES) {
    Group g{};
    const Pair<Real>* pairs[LANES];
    g.n.T = g.n.U = 1;
    g.n.used = int(std::min<int64_t>(LANES, job.count - first));
    for (int l = 0; l < LANES; ++l) {  // an unused lane repeats the last pair
      pairs[l] = job.pairs + first + std::min(l, g.n.used - 1);
      g.n.t[l] = pairs[l]->t;
      g.n.u[l] = pairs[l]->u;
      g.n.T = std::max(g.n.T, g.n.t[l]);
      g.n.U = std::max(g.n.U, g.n.u[l]);
    }
    g.n.equal = true;
    for (int l = 0; l < LANES; ++l) g.n.equal &= g.n.t[l] == g.n.T && g.n.u[l] == g.n.U;
    double below;
    gather(job, pairs, g.n, costs.data());
    inspect<B>(g, costs.data(), &g.forced, &below);
    g.open = (Mask(1) << g.n.used) - 1;
    g.slack = (g.n.T + g.n.U) * below / job.gamma;
    if (++tried % 16 == 0) unlikely = false;
    g.unlikely = &unlikely;
    const int64_t stride = int64_t(g.n.U) * LANES;
    const FlushDenormals flush;
    if (job.gradient) {
      Emit<Real> emit{pairs, shares.data(), g.n};
      gradients<B, Real>(costs.data(), stride, g, job.gamma, work, shares.data(), emit);
    } else {
      values<B, Real, false>(costs.data(), stride, g, job.gamma, work);
    }
    for (int l = 0; l < g.n.used; ++l) *pairs[l]->dist = Real(g.dist[l]);
    count(g.solved);
  }
}

// -------------------------------------------------------------------------------------------------------- a gallery

struct Head {
  const double *slope, *centre, *height;  // per hidden unit
  int hidden;
  double bias;
  bool score;
};

// Work on one gallery in panels: [block][D][panels of a block][U][16].
struct GalleryJob {
  int64_t N, T, D, U, G, blocks, block_panels;
  double gamma, slack;
  float* dist;           // [N][G] or null
  double* totals;        // [parts][N][K] or null
  const int64_t* label;  // [G]
  int64_t K;
  Head head;
  int64_t query, part;  // queries and blocks of an item
};

// f_S(D) = b - sum_h height_h tanh(slope_h D + centre_h), or its sigmoid.
template <int B>
INLINE void alignability(const Head& head, const double* dist, double* value) {
  typedef typename Isa<B>::d d;
  for (int l = 0; l < LANES; l += Isa<B>::W) {
    const d x = load<B>(dist + l);
    d sum = all<B>(head.bias);
    for (int h = 0; h < head.hidden; ++h) {
      d y = (x * head.slope[h] + head.centre[h]) * (2 * LOG2E);
      y = y > 60.0 ? all<B>(60.0) : y;  // tanh is 1 there
      sum -= head.height[h] * (1.0 - 2.0 / (exp2_single<B>(y) + 1.0));
    }
    if (head.score) {
      sum = sum < -700.0 ? all<B>(-700.0) : sum;  // exp ends at 709
      sum = 1.0 / (1.0 + exp_double<B>(-sum));
    }
    store<B>(value + l, sum);
  }
}

template <int B>
INLINE void score_tile(const GalleryJob& job, const float* tile, int64_t n, int64_t block, int64_t part, Work& work,
                       bool* unlikely, int64_t* solved) {
  const int64_t columns = job.block_panels * job.U * LANES;
  for (int64_t p = 0; p < job.block_panels; ++p) {
    const int64_t first = (block * job.block_panels + p) * LANES;
    if (first >= job.G) break;
    Group g{};
    g.n.T = int(job.T);
    g.n.U = int(job.U);
    g.n.used = int(std::min<int64_t>(LANES, job.G - first));
    g.n.equal = true;
    for (int l = 0; l < LANES; ++l) {
      g.n.t[l] = g.n.T;
      g.n.u[l] = g.n.U;
    }
    g.open = (Mask(1) << g.n.used) - 1;
    g.slack = job.slack;
    g.unlikely = unlikely;
    values<B, float, true>(tile + p * job.U * LANES, columns, g, job.gamma, work);
    for (int step = 0; step < 3; ++step) solved[step] += g.solved[step];
    const double divide = 1.0 / double(job.T + job.U);
    for (int l = 0; l < LANES; ++l) g.dist[l] = l < g.n.used ? g.dist[l] * divide : 0;
    if (job.dist)
      for (int l = 0; l < g.n.used; ++l) job.dist[n * job.G + first + l] = float(g.dist[l]);
    if (job.totals) {
      double value[LANES];
      alignability<B>(job.head, g.dist, value);
      double* total = job.totals + (part * job.N + n) * job.K;
      for (int l = 0; l < g.n.used; ++l) total[job.label[first + l]] += value[l];
    }
  }
}

template <int B>
INLINE void score_tiles(const GalleryJob& job, const float* product, int64_t n, int64_t rows, int64_t block,
                        int64_t part, Work& work, bool* unlikely, int64_t* tried, int64_t* solved) {
  const FlushDenormals flush;
  const int64_t columns = job.block_panels * job.U * LANES;
  for (int64_t q = 0; q < rows; ++q) {
    if (++*tried % 16 == 0) *unlikely = false;
    score_tile<B>(job, product + q * job.T * columns, n + q, block, part, work, unlikely, solved);
  }
}

// ------------------------------------------------------------------------------- one copy for each instruction set

#define COPIES(NAME, BYTES, TARGET)                                                                                  \
  TARGET void pairs_##NAME(const PairJob<float>& job, int64_t begin, int64_t end) {                                  \
    run_pairs<BYTES>(job, begin, end);                                                                               \
  }                                                                                                                  \
  TARGET void pairs_##NAME(const PairJob<double>& job, int64_t begin, int64_t end) {                                 \
    run_pairs<BYTES>(job, begin, end);                                                                               \
  }                                                                                                                  \
  TARGET void tiles_##NAME(const GalleryJob& job, const float* product, int64_t n, int64_t rows, int64_t block,      \
                           int64_t part, Work& work, bool* unlikely, int64_t* tried, int64_t* solved) {              \
    score_tiles<BYTES>(job, product, n, rows, block, part, work, unlikely, tried, solved);                           \
  }

COPIES(baseline, 16, )  // SSE2, NEON, or scalar code
#if defined(__x86_64__)
COPIES(avx2, 32, __attribute__((target("avx2,fma"))))
COPIES(avx512, 64, __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"))))
#endif

enum Level { BASELINE, AVX2, AVX512 };
constexpr const char* LEVELS[] = {"baseline", "avx2", "avx512"};

Level best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl"))
    return AVX512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AVX2;
#endif
  return BASELINE;
}

std::atomic<int> level{best()};

#if defined(__x86_64__)
#define DISPATCH(NAME, ...)                                             \
  (level == AVX512 ? NAME##_avx512(__VA_ARGS__)                         \
                   : level == AVX2 ? NAME##_avx2(__VA_ARGS__) : NAME##_baseline(__VA_ARGS__))
#else
#define DISPATCH(NAME, ...) NAME##_baseline(__VA_ARGS__)
#endif

// -------------------------------------------------------------------------------------------------------- operators

template <class Real>
void solve(const PairJob<Real>& job) {
  const int64_t groups = (job.count + LANES - 1) / LANES;
  constexpr int64_t STRETCH = 8;  // groups of an item: what is remembered between groups must not depend on threads
  at::parallel_for(0, (groups + STRETCH - 1) / STRETCH, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item)
      DISPATCH(pairs, job, item * STRETCH, std::min((item + 1) * STRETCH, groups));
  });
}

template <class Real>
void pairs_of(const at::Tensor& cost, double gamma, const int64_t* lengths, at::Tensor& dist, at::Tensor& shares) {
  Real* gradient = shares.numel() ? shares.data_ptr<Real>() : nullptr;
  const int64_t P = cost.size(0), T = cost.size(1), U = cost.size(2);
  std::vector<Pair<Real>> pairs(P);
  for (int64_t p = 0; p < P; ++p)
    pairs[p] = {cost.data_ptr<Real>() + p * T * U, U, int(lengths ? lengths[2 * p] : T),
                int(lengths ? lengths[2 * p + 1] : U), dist.data_ptr<Real>() + p,
                gradient ? gradient + p * T * U : nullptr, U};
  solve(PairJob<Real>{pairs.data(), P, int(T), int(U), gamma, false, gradient != nullptr});
}

std::tuple<at::Tensor, at::Tensor> soft_dtw(const at::Tensor& cost_PTU, double gamma, const at::Tensor& lengths_P2,
                                            bool gradient) {
  const at::Tensor cost = cost_PTU.contiguous(), lengths = lengths_P2.contiguous();
  at::Tensor dist = at::empty({cost.size(0)}, cost.options());
  at::Tensor shares = gradient ? at::zeros(cost.sizes(), cost.options()) : at::empty({0}, cost.options());
  const int64_t* given = lengths.numel() ? lengths.data_ptr<int64_t>() : nullptr;
  if (cost.scalar_type() == at::kDouble)
    pairs_of<double>(cost, gamma, given, dist, shares);
  else
    pairs_of<float>(cost, gamma, given, dist, shares);
  return {dist, shares};
}

constexpr int64_t STRIP_ROWS = 128;  // frames of a strip: enough for the product, few enough for the cache

int64_t strip_clips(int64_t T) { return std::max<int64_t>(1, STRIP_ROWS / T); }

// The place of pair (i, j), i <= j, in the upper triangle of B x B, row by row.
int64_t triangle(int64_t i, int64_t j, int64_t B) { return i * B - i * (i - 1) / 2 + (j - i); }

// Strips of rows, first and last in turn: those at the top of the triangle hold most of the pairs.
template <class Run>
void over_strips(int64_t strips, const Run& run) {
  at::parallel_for(0, (strips + 1) / 2, 1, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      run(s);
      if (strips - 1 - s != s) run(strips - 1 - s);
    }
  });
}

// D = R / 2T of a block as a symmetric square, and E of the pairs i <= j, if `shares` has room for it.
template <class Real>
void block_of(const at::Tensor& emb, double gamma, at::Tensor& square, at::Tensor& shares) {
  const int64_t B = emb.size(0), T = emb.size(1), D = emb.size(2), clips = strip_clips(T);
  Real* gradient = shares.numel() ? shares.data_ptr<Real>() : nullptr;
  std::vector<Real> dist(B * (B + 1) / 2);
  const at::Tensor flat = emb.view({B * T, D}), across = flat.t();
  over_strips((B + clips - 1) / clips, [&](int64_t strip) {
    const int64_t top = strip * clips, rows = std::min(clips, B - top);
    at::Tensor product = at::empty({rows * T, (B - top) * T}, emb.options());
    at::cpu::mm_out(product, flat.narrow(0, top * T, rows * T), across.narrow(1, top * T, (B - top) * T));
    std::vector<Pair<Real>> pairs;
    for (int64_t i = top; i < top + rows; ++i)
      for (int64_t j = i; j < B; ++j) {
        const int64_t p = triangle(i, j, B);
        pairs.push_back({product.data_ptr<Real>() + (i - top) * T * (B - top) * T + (j - top) * T, (B - top) * T,
                         int(T), int(T), dist.data() + p, gradient ? gradient + p * T * T : nullptr, T});
      }
    const PairJob<Real> job{pairs.data(), int64_t(pairs.size()), int(T), int(T), gamma, true, gradient != nullptr};
    DISPATCH(pairs, job, 0, (job.count + LANES - 1) / LANES);
  });
  Real* to = square.data_ptr<Real>();
  for (int64_t i = 0; i < B; ++i)
    for (int64_t j = i; j < B; ++j) to[i * B + j] = to[j * B + i] = dist[triangle(i, j, B)] / Real(2 * T);
}

// D = R / 2T of a block, and where a gradient is wanted E of the pairs i <= j, in the order of the upper triangle.
std::tuple<at::Tensor, at::Tensor> block(const at::Tensor& emb_BTD, double gamma, bool gradient) {
  const at::Tensor emb = emb_BTD.contiguous();
  const int64_t B = emb.size(0), T = emb.size(1);
  at::Tensor square = at::empty({B, B}, emb.options());
  at::Tensor shares = at::empty({gradient ? B * (B + 1) / 2 : 0, T, T}, emb.options());
  if (emb.scalar_type() == at::kDouble)
    block_of<double>(emb, gamma, square, shares);
  else
    block_of<float>(emb, gamma, square, shares);
  return {square, shares};
}

template <class Real>
void block_gradient_of(const Real* shares, const Real* weight, const at::Tensor& emb, at::Tensor& out) {
  const int64_t B = emb.size(0), T = emb.size(1), D = emb.size(2), clips = strip_clips(T);
  const at::Tensor flat = emb.view({B * T, D});
  const int64_t strips = (B + clips - 1) / clips;
  at::parallel_for(0, strips, 1, [&](int64_t begin, int64_t end) {
    for (int64_t strip = begin; strip < end; ++strip) {
      const int64_t top = strip * clips, rows = std::min(clips, B - top), wide = B * T;
      at::Tensor mixed = at::empty({rows * T, wide}, emb.options());
      for (int64_t i = top; i < top + rows; ++i)
        for (int64_t j = 0; j < B; ++j) {
          const int64_t p = triangle(std::min(i, j), std::max(i, j), B);
          const Real w = (i == j ? weight[i * B + i] : weight[i * B + j] + weight[j * B + i]) / Real(-2 * T);
          const Real* from = shares + p * T * T;
          Real* to = mixed.data_ptr<Real>() + (i - top) * T * wide + j * T;
          for (int64_t u = 0; u < T && i >= j; u += 4)  // E of (j, i), turned
            for (int64_t t = 0; t < T; t += 4)
              if (u + 4 <= T && t + 4 <= T) {
                const Real* block = from + u * T + t;
                turn(block, block + T, block + 2 * T, block + 3 * T, to + t * wide + u, wide);
              } else {
                for (int64_t v = u; v < std::min(u + 4, T); ++v)
                  for (int64_t s = t; s < std::min(t + 4, T); ++s) to[s * wide + v] = from[v * T + s];
              }
          for (int64_t t = 0; t < T; ++t)
            for (int64_t u = 0; u < T; ++u)
              to[t * wide + u] = w * ((i >= j ? to[t * wide + u] : 0) + (i <= j ? from[t * T + u] : 0));
        }
      at::Tensor part = out.narrow(0, top * T, rows * T);
      at::cpu::mm_out(part, mixed, flat);
    }
  });
}

// d/d emb of the sum of weight x D over the square, from the E of `block`.
at::Tensor block_gradient(const at::Tensor& shares_PTT, const at::Tensor& weight_BB, const at::Tensor& emb_BTD) {
  const at::Tensor emb = emb_BTD.contiguous(), weight = weight_BB.contiguous();
  at::Tensor out = at::empty({emb.size(0) * emb.size(1), emb.size(2)}, emb.options());
  if (emb.scalar_type() == at::kDouble)
    block_gradient_of<double>(shares_PTT.data_ptr<double>(), weight.data_ptr<double>(), emb, out);
  else
    block_gradient_of<float>(shares_PTT.data_ptr<float>(), weight.data_ptr<float>(), emb, out);
  return out.view(emb.sizes());
}

// A gallery as [blocks][D][panels of a block][U][16]: what `gallery` takes. The last block is filled up with zeros.
at::Tensor panels(const at::Tensor& gallery_GUD, int64_t block_panels) {
  const at::Tensor from = gallery_GUD.contiguous();
  const int64_t G = from.size(0), U = from.size(1), D = from.size(2), count = (G + LANES - 1) / LANES;
  const int64_t blocks = (count + block_panels - 1) / block_panels, columns = block_panels * U * LANES;
  at::Tensor out = at::empty({blocks, D, columns}, from.options());
  if (G < blocks * block_panels * LANES) out.select(0, blocks - 1).zero_();
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      float* to = out.data_ptr<float>() + panel / block_panels * D * columns + panel % block_panels * U * LANES;
      for (int64_t l = 0; l < LANES; l += 4)
        for (int64_t u = 0; u < U; ++u) {
          const float* lane[4];
          for (int64_t k = 0; k < 4; ++k)  // beyond the gallery: its last member, which no one looks at
            lane[k] = from.data_ptr<float>() + (std::min(panel * LANES + l + k, G - 1) * U + u) * D;
          int64_t d = 0;
          for (; d + 4 <= D; d += 4)
            turn(lane[0] + d, lane[1] + d, lane[2] + d, lane[3] + d, to + d * columns + u * LANES + l, columns);
          for (; d < D; ++d)
            for (int64_t k = 0; k < 4; ++k) to[d * columns + u * LANES + l + k] = lane[k][d];
        }
    }
  });
  return out;
}

// D of N videos with a gallery in panels [blocks][D][block_panels U 16], as [N][G], or the sums of alignability over
// the members of each class, as [N][K]. `head` is [3][H]: slope, centre, height.
at::Tensor gallery(const at::Tensor& emb_NTD, const at::Tensor& panels, int64_t U, int64_t G, double gamma,
                   double slack, const at::Tensor& label_G, int64_t K, const at::Tensor& head_3H, double bias,
                   bool score) {
  const at::Tensor emb = emb_NTD.contiguous(), label = label_G.contiguous(), head = head_3H.contiguous();
  GalleryJob job{};
  job.N = emb.size(0), job.T = emb.size(1), job.D = emb.size(2), job.U = U, job.G = G;
  job.blocks = panels.size(0), job.block_panels = panels.size(2) / (U * LANES);
  job.gamma = gamma, job.slack = slack;
  const int64_t columns = panels.size(2);
  job.query = std::max<int64_t>(1, STRIP_ROWS / job.T);
  const int64_t strips = (job.N + job.query - 1) / job.query;
  // Few videos: the gallery is divided as well, whose sums are then added in the order of the parts.
  const int64_t parts = std::min(job.blocks, std::max<int64_t>(1, 16 / std::max<int64_t>(strips, 1)));
  job.part = (job.blocks + parts - 1) / parts;
  at::Tensor dist, totals;
  if (K) {
    totals = at::zeros({parts, job.N, K}, emb.options().dtype(at::kDouble));
    job.totals = totals.data_ptr<double>();
    job.label = label.data_ptr<int64_t>();
    for (int64_t g = 0; g < label.numel(); ++g)
      TORCH_CHECK_VALUE(job.label[g] >= 0 && job.label[g] < K, "expected labels within 0..", K - 1, ", got ",
                        job.label[g], " in row ", g);
    TORCH_CHECK_VALUE(label.numel() == G, "expected ", G, " labels, got ", label.numel());
    job.K = K;
    const double* values = head.data_ptr<double>();
    const int hidden = int(head.size(1));
    job.head = {values, values + hidden, values + 2 * hidden, hidden, bias, score};
  } else {
    dist = at::empty({job.N, G}, emb.options());
    job.dist = dist.data_ptr<float>();
  }
  at::parallel_for(0, strips * parts, 1, [&](int64_t begin, int64_t end) {
    Work work(int(job.T), int(job.U), false);
    at::Tensor product = at::empty({job.query * job.T, columns}, emb.options());
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / parts * job.query, part = item % parts, rows = std::min(job.query, job.N - n);
      bool unlikely = false;
      int64_t tried = 0, solved[3] = {};
      const at::Tensor query = emb.narrow(0, n, rows).view({rows * job.T, job.D});
      at::Tensor here = product.narrow(0, 0, rows * job.T);
      for (int64_t block = part * job.part; block < std::min((part + 1) * job.part, job.blocks); ++block) {
        at::cpu::mm_out(here, query, panels.select(0, block));
        DISPATCH(tiles, job, product.data_ptr<float>(), n, rows, block, part, work, &unlikely, &tried, solved);
      }
      count(solved);
    }
  });
  return K ? totals.sum(0) : dist;
}

std::vector<int64_t> solved() { return {solved_by[0].load(), solved_by[1].load(), solved_by[2].load()}; }

std::string instructions() { return LEVELS[level]; }

void limit(const std::string& name) {
  for (int k = BASELINE; k <= AVX512; ++k)
    if (name == LEVELS[k] && k <= best()) {
      level = k;
      return;
    }
  TORCH_CHECK_VALUE(false, "expected an instruction set of this machine, up to ", LEVELS[best()], ", got ", name);
}

}  // namespace finepseudo

TORCH_LIBRARY(finepseudo, m) {
  m.def("soft_dtw(Tensor cost_PTU, float gamma, Tensor lengths_P2, bool gradient) -> (Tensor, Tensor)");
  m.def("block(Tensor emb_BTD, float gamma, bool gradient) -> (Tensor, Tensor)");
  m.def("block_gradient(Tensor shares_PTT, Tensor weight_BB, Tensor emb_BTD) -> Tensor");
  m.def("panels(Tensor gallery_GUD, int block_panels) -> Tensor");
  m.def(
      "gallery(Tensor emb_NTD, Tensor panels, int U, int G, float gamma, float slack, Tensor label_G, int K, "
      "Tensor head_3H, float bias, bool score) -> Tensor");
  m.def("solved() -> int[]", finepseudo::solved);
  m.def("source() -> str", [] { return std::string(FINEPSEUDO_SOURCE); });
  m.def("instructions() -> str", finepseudo::instructions);
  m.def("limit(str name) -> ()", finepseudo::limit);
}

TORCH_LIBRARY_IMPL(finepseudo, CPU, m) {
  m.impl("soft_dtw", finepseudo::soft_dtw);
  m.impl("block", finepseudo::block);
  m.impl("block_gradient", finepseudo::block_gradient);
  m.impl("panels", finepseudo::panels);
  m.impl("gallery", finepseudo::gallery);
}
