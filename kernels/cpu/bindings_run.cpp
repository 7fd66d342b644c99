// `start_run`, `finish_chunk`, `loss_history` and `end_run`: a run before, between and after its chunks. Contracts in
// matconv_fast/_reference/run.py.
#include <tuple>
#include <vector>

#include "bindings.h"
#include "finish_chunk.h"

namespace mcf {
namespace {

// Calls f(block of Y, elements, the problem's factor) for every block, and combines the results of each problem in
// order. Denormal numbers are not flushed here.
template <typename T, typename F, typename Combine>
std::vector<double> over_blocks(const Tensor& Y, const std::vector<double>& factors, const F& f,
                                const Combine& combine) {
  const int64_t problems = Y.size(0), elements = problems ? Y.numel() / problems : 0;
  const int64_t blocks = std::max<int64_t>(1, parts_of(elements, kSweep));
  std::vector<double> partial(problems * blocks), found(problems);
  for_range(problems * blocks, rows_in_block(elements), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks, first = i % blocks * kSweep;
      partial[i] = f(read<T>(Y) + b * elements + first, std::min(kSweep, elements - first), factors[b]);
    }
  });
  for (int64_t b = 0; b < problems; ++b) {
    found[b] = partial[b * blocks];
    for (int64_t i = 1; i < blocks; ++i) found[b] = combine(found[b], partial[b * blocks + i]);
  }
  return found;
}

// The sum of squares of factor * Y, as eight independent sums.
template <typename T>
double squares_of(const T* Y, int64_t elements, double factor) {
  double sums[8] = {};
  const auto add = [&](int64_t k, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const double y = factor * static_cast<double>(Y[k + i]);
      sums[i] += y * y;
    }
  };
  int64_t k = 0;
  for (; k + 8 <= elements; k += 8) add(k, 8);
  add(k, elements - k);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// ||Y||_F of each problem; float64 is scaled by its largest element, so that no square underflows or overflows.
template <typename T>
std::vector<double> norms(const Tensor& Y) {
  std::vector<double> scales(Y.size(0), 1.0), inverse = scales;
  if (sizeof(T) == 8) {
    const auto larger = [](double a, double b) { return a > b ? a : b; };  // a NaN shows in the sum
    scales = over_blocks<T>(
        Y, scales,
        [&](const T* y, int64_t elements, double) {
          double largest = std::numeric_limits<double>::min();
          for (int64_t k = 0; k < elements; ++k) largest = larger(std::fabs(y[k]), largest);
          return largest;
        },
        larger);
    for (size_t b = 0; b < scales.size(); ++b) inverse[b] = 1 / scales[b];
  }
  std::vector<double> found = over_blocks<T>(Y, inverse, squares_of<T>, [](double a, double b) { return a + b; });
  for (size_t b = 0; b < found.size(); ++b) found[b] = scales[b] * std::sqrt(found[b]);
  return found;
}

typedef std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> Run;

Run start_run(const Tensor& any_Y, const Tensor& bail, const Tensor& last, const Tensor& best, const Tensor& status,
              double rtol, double atol) {
  const int64_t batch = status.size(0);
  for (const Tensor* t : {&bail, &last, &best}) check(*t, ScalarType::Double, batch, "start_run");
  check(status, ScalarType::Long, batch, "start_run");
  STD_TORCH_CHECK(any_Y.is_cpu() && any_Y.dim() == 3 && (any_Y.size(0) == 1 || any_Y.size(0) == batch),
                  "start_run: Y must be [1 or B, m, p] on the CPU");
  const Tensor Y = readable(any_Y);
  std::vector<double> norm;
  with_dtype(Y.scalar_type(), "start_run", [&](auto zero) { norm = norms<decltype(zero)>(Y); });

  const auto copy = [&](const Tensor& t) {
    const Tensor made = empty_values(t, true, batch);
    std::copy_n(read<int64_t>(t), batch, write<int64_t>(made));  // any type of 8 bytes
    return made;
  };
  const auto zeros = [&](int64_t size) {
    const Tensor made = empty_values(status, true, size);
    std::fill_n(write<int64_t>(made), size, 0);
    return made;
  };
  const Tensor threshold = empty_values(last, true, batch), Y_squares = empty_values(last, true, batch);
  double *const to_threshold = write<double>(threshold), *const to_squares = write<double>(Y_squares);
  const bool wide = Y.scalar_type() == ScalarType::Double, each = Y.size(0) > 1;
  for (int64_t b = 0; b < batch; ++b) {
    const double y = norm[each ? b : 0], relative = rtol * y;
    const double tolerance = relative < atol ? atol : relative, square = tolerance * tolerance;
    to_threshold[b] = wide && tolerance > 0 && square < kSmallestSquare ? -1 : square;
    to_squares[b] = y * y;
  }
  return {threshold,    Y_squares,    copy(bail),   copy(last),   copy(best),
          zeros(batch), zeros(batch), zeros(batch), copy(status), zeros(2)};
}

void finish_chunk_op(const Tensor& sums, const Tensor& steps_done, const Tensor& threshold, const Tensor& Y_squares,
                     const Tensor& bail, const Tensor& last, const Tensor& best, const Tensor& updates,
                     const Tensor& status, const Tensor& replay_to, const Tensor& counts) {
  const int64_t batch = sums.size(0);
  for (const Tensor* t : {&sums, &threshold, &Y_squares, &bail, &last, &best})
    check(*t, ScalarType::Double, batch, "finish_chunk");
  for (const Tensor* t : {&steps_done, &updates, &status, &replay_to})
    check(*t, ScalarType::Long, batch, "finish_chunk");
  check(counts, ScalarType::Long, 2, "finish_chunk");
  const FinishChunk chunk = {sums.size(1),
                             read<double>(sums),
                             read<int64_t>(steps_done),
                             read<double>(threshold),
                             read<double>(Y_squares),
                             write<double>(bail),
                             write<double>(last),
                             write<double>(best),
                             write<int64_t>(updates),
                             write<int64_t>(status),
                             write<int64_t>(replay_to)};
  const int64_t rows = rows_in_block(chunk.columns), blocks = parts_of(batch, rows);
  std::vector<Counts> found(blocks);
  for_range(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) found[i] = finish_chunk(chunk, i * rows, std::min(batch, (i + 1) * rows));
  });
  Counts all = {0, -1};
  for (const Counts& some : found) all = {all.running + some.running, std::max(all.longest, some.longest)};
  write<int64_t>(counts)[0] = all.running, write<int64_t>(counts)[1] = all.longest;
}

template <typename T>
void write_losses(const Tensor& sums, const Tensor& updates, int64_t begin, int64_t every, int64_t loss,
                  int64_t elements, const Tensor& losses) {
  const int64_t batch = losses.size(0), entries = losses.size(1), step = sums.stride(1), rows = rows_in_block(entries);
  for_range(parts_of(batch, rows), 1, [&](int64_t first, int64_t last) {
    for (int64_t b = first * rows; b < std::min(batch, last * rows); ++b) {
      const double* from = read<double>(sums) + b * sums.stride(0);
      T* to = write<T>(losses) + b * entries;
      const int64_t more = read<int64_t>(updates)[b] - begin;
      const int64_t visited = more < 0 ? 0 : std::min(entries, more / every + 1);
      for (int64_t j = 0; j < visited; ++j) to[j] = static_cast<T>(loss_of(from[j * step], loss, elements));
      std::fill(to + visited, to + entries, std::numeric_limits<T>::quiet_NaN());
    }
  });
}

Tensor loss_history(const Tensor& sums, const Tensor& updates, int64_t begin, int64_t every, int64_t loss,
                    int64_t elements, ScalarType dtype) {
  const int64_t batch = updates.size(0);
  check(updates, ScalarType::Long, batch, "loss_history");
  STD_TORCH_CHECK(sums.is_cpu() && sums.scalar_type() == ScalarType::Double && sums.dim() == 2 &&
                      sums.size(0) == batch && every > 0,
                  "loss_history: sums must be [B, H] in float64 on the CPU, and every above 0");
  const Tensor losses = torch::stable::new_empty(sums, {batch, sums.size(1)}, dtype);
  with_dtype(dtype, "loss_history",
             [&](auto zero) { write_losses<decltype(zero)>(sums, updates, begin, every, loss, elements, losses); });
  return losses;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> end_run(const Tensor& last, const Tensor& iterations, const Tensor& status,
                                                   const Tensor& X, const std::vector<int64_t>& shape, int64_t loss,
                                                   int64_t elements) {
  const int64_t batch = status.size(0);
  check(last, ScalarType::Double, batch, "end_run");
  check(status, ScalarType::Long, batch, "end_run");
  STD_TORCH_CHECK(iterations.is_cpu() && iterations.scalar_type() == ScalarType::Long && iterations.dim() == 1 &&
                      iterations.size(0) == batch,
                  "end_run: iterations must be [B] in int64 on the CPU");
  const int64_t step = iterations.stride(0);  // 0 where all problems have made as many
  const auto made = [&](const Tensor& like) { return empty_like(like, shape.data(), shape.size()); };
  const Tensor losses = made(X), norms = made(last), iterations_made = made(iterations), status_made = made(status);
  STD_TORCH_CHECK(X.is_cpu() && losses.numel() == batch, "end_run: the shape must be that of the batch");
  with_dtype(X.scalar_type(), "end_run", [&](auto zero) {
    typedef decltype(zero) T;
    // A pointer takes a call into libtorch, as long as ten problems.
    const double* const sums = read<double>(last);
    const int64_t *const counts = read<int64_t>(iterations), *const codes = read<int64_t>(status);
    T* const to_loss = write<T>(losses);
    double* const to_norm = write<double>(norms);
    int64_t *const to_count = write<int64_t>(iterations_made), *const to_code = write<int64_t>(status_made);
    for_range(parts_of(batch, kSweep), 1, [&](int64_t first, int64_t end) {
      for (int64_t b = first * kSweep; b < std::min(batch, end * kSweep); ++b) {
        to_loss[b] = static_cast<T>(loss_of(sums[b], loss, elements));
        to_norm[b] = std::sqrt(sums[b]), to_count[b] = counts[b * step], to_code[b] = codes[b];
      }
    });
  });
  return {losses, norms, iterations_made, status_made};
}

}  // namespace
}  // namespace mcf

STABLE_TORCH_LIBRARY_IMPL(matconv_fast, CPU, m) {
  m.impl("start_run", TORCH_BOX(&mcf::start_run));
  m.impl("finish_chunk", TORCH_BOX(&mcf::finish_chunk_op));
  m.impl("loss_history", TORCH_BOX(&mcf::loss_history));
  m.impl("end_run", TORCH_BOX(&mcf::end_run));
}
