// C text of poisson_factors_rows.py and poisson_factors_spots.py for Poisson counts.  A group (a
// spot with its cells, or a cell without a spot) is a block of threads; in C it is one.
#include "portable_math.cuh"

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define FOR_EACH_GROUP(g, n) for (int64 g = blockIdx.x; g < (n); g += gridDim.x)
#define FOR_LANES(i, first, last) for (int64 i = (first) + threadIdx.x; i < (last); i += blockDim.x)
#define FIRST_LANE (threadIdx.x == 0)
#define WAIT() __syncthreads()
#else
#define FOR_EACH_GROUP(g, n) for (int64 g = 0; g < (n); ++g)
#define FOR_LANES(i, first, last) for (int64 i = (first); i < (last); ++i)
#define FIRST_LANE 1
#define WAIT()
#endif

#define EPSILON 1e-8
#define SMALLEST 1e-12
#define SMALLEST_SIZE 1e-6
#define NOISE 1e-11
#define DEPTH 56.0
#define INFINITE (1.0 / 0.0)

typedef struct {
    const int64 *indptr;
    const int *genes;
    const float *values;
} counts_of;

typedef struct {
    double *p, *n, *m;
} rows_of;

typedef struct {
    const double *cells, *spots, *rate_cells, *rate_spots;
} factors_of;

typedef struct {
    int64 width, n_factors, rounds, exponent;
    double entropy, l2;
} options_of;

typedef struct {
    double *sums, *rates, *losses;          // of cells: (n, width), (n, width), (n, 3)
    double *loading, *spot_sums, *totals;   // of groups: (n, width), (n, width), (n, 7)
    double *of_cells, *of_spots;            // of non-zeros: their ratios
} work_of;

enum { LOSS, ENTROPY, SQUARES };                               // columns of work.losses
enum { LOSS_X, LOSS_V, ENTROPIES, SQUARES_, REJECTED, LEAST, ACCEPTED };  // of work.totals

DEVICE double at_least(double a, double b) { return a > b ? a : b; }

DEVICE double dot(const double *left, const double *right, int64 width) {
    double total = 0.0;
    for (int64 k = 0; k < width; ++k) total += left[k] * right[k];
    return total;
}

DEVICE double normalise(double *row, int64 size) {
    double before = 0.0, after = 0.0;
    for (int64 k = 0; k < size; ++k) before += row[k];
    for (int64 k = 0; k < size; ++k) {
        row[k] = at_least(row[k] / before, SMALLEST);
        after += row[k];
    }
    for (int64 k = 0; k < size; ++k) row[k] /= after;
    return before;
}

DEVICE double shrunken_log(double count, double rate, double centre, double l2) {
    const double free = count > 0.0 ? portable_log(count / rate) : -INFINITE;
    if (l2 == 0.0) return free;
    double u = free;
    if (free < centre) {
        const double bound = portable_log((count + DEPTH * l2) / rate);
        u = bound < centre ? bound : centre;
    }
    for (int attempt = 0; attempt < 60; ++attempt) {
        const double curve = rate * portable_exp(u);
        const double step = (count - curve - 2.0 * l2 * (u - centre)) / (curve + 2.0 * l2);
        u += step;
        if (step > -1e-12) break;
    }
    return u;
}

DEVICE void penalised_row(
    const double *counts, double *rates, const double *old, int64 n, double entropy, double l2,
    double *out
) {
    double all = 0.0, centre = 0.0;
    for (int64 k = 0; k < n; ++k) {
        out[k] = old[k];
        all += counts[k];
    }
    if (all <= 0.0) return;
    double smallest = INFINITE, low = -INFINITE;
    for (int64 k = 0; k < n; ++k) {
        const double log_p = portable_log(old[k]), shifted = old[k] + SMALLEST;
        centre += log_p / (double)n;
        rates[k] -= entropy * (portable_log(shifted) + old[k] / shifted);
        smallest = rates[k] < smallest ? rates[k] : smallest;
    }
    for (int64 k = 0; k < n; ++k) low = at_least(low, counts[k] + 2.0 * l2 * centre - rates[k]);
    if (low <= -smallest) low = -smallest + SMALLEST * (1.0 + fabs(smallest));
    double high = INFINITE, shift = low, total = INFINITE;
    for (int attempt = 0; attempt < 100; ++attempt) {
        double slope = total = 0.0;
        for (int64 k = 0; k < n; ++k) {
            const double rate = rates[k] + shift;
            const double p =
                l2 == 0.0 ? counts[k] / rate : portable_exp(shrunken_log(counts[k], rate, centre, l2));
            slope -= l2 == 0.0 ? p / rate : p * p / (rate * p + 2.0 * l2);
            out[k] = p;
            total += p;
        }
        if (fabs(total - 1.0) < 1e-13) break;
        if (total > 1.0) low = shift;
        else high = shift;
        shift -= total * (total - 1.0) / slope;
        if (!(low <= shift && shift <= high)) shift = 0.5 * (low + high);
    }
    if (fabs(total - 1.0) > 1e-6) {
        for (int64 k = 0; k < n; ++k) out[k] = old[k];
    }
    normalise(out, n);
}

DEVICE double size_of(double count, double rate, double l2) {
    if (l2 > 0.0) return at_least(portable_exp(shrunken_log(count, rate, 0.0, l2)), SMALLEST_SIZE);
    return at_least(count / rate, SMALLEST_SIZE);
}

// Ratios of the counts of a row to their means.
DEVICE void ratios_of(
    counts_of counts, int64 row, const double *weights, double scale, const double *table,
    int64 width, double *ratios
) {
    FOR_LANES(e, counts.indptr[row], counts.indptr[row + 1]) {
        const double mean =
            EPSILON + scale * dot(weights, table + counts.genes[e] * width, width);
        ratios[e] = (double)counts.values[e] / mean;
    }
}

// Sum of the ratios of a row times a column of the table; the column after the last is that of
// count times log mean.
DEVICE double column_sum(
    counts_of counts, int64 row, const double *table, int64 width, int64 k, const double *ratios
) {
    double total = 0.0;
    for (int64 e = counts.indptr[row]; e < counts.indptr[row + 1]; ++e) {
        const double count = counts.values[e];
        if (k < width) total += ratios[e] * table[counts.genes[e] * width + k];
        else if (count > 0.0) total += count * portable_log(count / ratios[e]);
    }
    return total;
}

DEVICE void explain(
    counts_of cells, counts_of spots, const int64 *members, int64 n, int64 spot, int64 group,
    rows_of rows, factors_of factors, options_of options, work_of work
) {
    const int64 width = options.width;
    double *loading = work.loading + group * width, *totals = work.totals + group * 7;
    FOR_LANES(k, 0, width) {
        loading[k] = 0.0;
        for (int64 i = 0; i < n; ++i)
            loading[k] += rows.m[members[i]] * rows.p[members[i] * width + k];
    }
    WAIT();
    for (int64 i = 0; i < n; ++i) {
        const int64 cell = members[i];
        ratios_of(
            cells, cell, rows.p + cell * width, rows.n[cell], factors.cells, width, work.of_cells
        );
    }
    if (spot >= 0) ratios_of(spots, spot, loading, 1.0, factors.spots, width, work.of_spots);
    WAIT();
    FOR_LANES(task, 0, (n + (spot >= 0)) * (width + 1)) {
        const int64 i = task / (width + 1), k = task % (width + 1);
        if (i < n) {
            const int64 cell = members[i];
            const double sum = column_sum(cells, cell, factors.cells, width, k, work.of_cells);
            if (k < width) work.sums[cell * width + k] = sum;
            else
                work.losses[cell * 3 + LOSS] =
                    rows.n[cell] * dot(rows.p + cell * width, factors.rate_cells, width) - sum;
        } else {
            const double sum = column_sum(spots, spot, factors.spots, width, k, work.of_spots);
            if (k < width) work.spot_sums[group * width + k] = sum;
            else totals[LOSS_V] = dot(loading, factors.rate_spots, width) - sum;
        }
    }
    FOR_LANES(i, 0, n) {
        double entropy = 0.0, total = 0.0, squares = 0.0;
        const double *p = rows.p + members[i] * width;
        if (options.entropy != 0.0 || options.l2 != 0.0) {
            for (int64 k = 0; k < options.n_factors; ++k) {
                const double log_p = portable_log(p[k]);
                total += log_p;
                squares += log_p * log_p;
                entropy -= p[k] * portable_log(p[k] + SMALLEST);
            }
            const double log_n = portable_log(rows.n[members[i]]);
            squares += log_n * log_n - total * total / (double)options.n_factors;
            if (spot >= 0) {
                const double log_m = portable_log(rows.m[members[i]]);
                squares += log_m * log_m;
            }
        }
        work.losses[members[i] * 3 + ENTROPY] = entropy;
        work.losses[members[i] * 3 + SQUARES] = squares;
    }
    WAIT();
}

// Lane 0 adds up the loss of the group, and tells whether it is accepted.
DEVICE void judge(const int64 *members, int64 n, int64 spot, int last, options_of options,
                  double *losses, double *totals) {
    if (FIRST_LANE) {
        double x = 0.0, entropy = 0.0, squares = 0.0;
        for (int64 i = 0; i < n; ++i) {
            x += losses[members[i] * 3 + LOSS];
            entropy += losses[members[i] * 3 + ENTROPY];
            squares += losses[members[i] * 3 + SQUARES];
        }
        if (spot < 0) totals[LOSS_V] = 0.0;
        totals[LOSS_X] = x;
        totals[ENTROPIES] = entropy;
        totals[SQUARES_] = squares;
        const double loss =
            x + totals[LOSS_V] + options.entropy * entropy + options.l2 * squares;
        const double least = totals[LEAST];
        const int accepted = last || !(least < INFINITE) || loss <= least + NOISE * fabs(least);
        totals[ACCEPTED] = accepted;
        if (accepted) totals[LEAST] = loss;
        else totals[REJECTED] += 1.0;
    }
    WAIT();
}

DEVICE void update(
    const int64 *members, int64 n, int64 spot, int64 group, rows_of rows, factors_of factors,
    options_of options, work_of work, rows_of out
) {
    const int64 width = options.width, h = options.n_factors;
    FOR_LANES(i, 0, n) {
        const int64 cell = members[i];
        const double *p = rows.p + cell * width, *spot_sums = work.spot_sums + group * width;
        double *counts = work.sums + cell * width, *rates = work.rates + cell * width;
        double *moved = out.p + cell * width;
        const double size = rows.n[cell], above = spot >= 0 ? rows.m[cell] : 0.0;
        double of_cell = 0.0, of_spot = 0.0;
        for (int64 k = 0; k < h; ++k) {
            const double x = size * p[k] * counts[k];
            const double v = spot >= 0 ? above * p[k] * spot_sums[k] : 0.0;
            of_cell += x;
            of_spot += v;
            counts[k] = x + v;
            rates[k] = size * factors.rate_cells[k] + above * factors.rate_spots[k];
        }
        if (of_cell + of_spot <= 0.0) {
            for (int64 k = 0; k < width; ++k) moved[k] = p[k];
        } else if (options.entropy == 0.0 && options.l2 == 0.0) {
            for (int64 k = 0; k < h; ++k) moved[k] = counts[k] / rates[k];
            normalise(moved, h);
        } else {
            penalised_row(counts, rates, p, h, options.entropy, options.l2, moved);
        }
        out.n[cell] = size_of(of_cell, dot(moved, factors.rate_cells, width), options.l2);
        out.m[cell] = spot >= 0
            ? size_of(of_spot, dot(moved, factors.rate_spots, width), options.l2)
            : rows.m[cell];
    }
    WAIT();
}

DEVICE void copy_rows(const int64 *members, int64 n, int64 width, rows_of from, rows_of to) {
    FOR_LANES(i, 0, n) {
        const int64 cell = members[i];
        for (int64 k = 0; k < width; ++k) to.p[cell * width + k] = from.p[cell * width + k];
        to.n[cell] = from.n[cell];
        to.m[cell] = from.m[cell];
    }
    WAIT();
}

DEVICE double stepped(double value, double plain, int64 exponent) {
    const double ratio = plain / value;
    for (int64 step = 0; step < exponent; ++step) value *= ratio;
    return value;
}

DEVICE void extrapolate(
    const int64 *members, int64 n, options_of options, rows_of plain, rows_of rows
) {
    FOR_LANES(i, 0, n) {
        const int64 cell = members[i];
        double *p = rows.p + cell * options.width;
        rows.n[cell] = stepped(rows.n[cell], plain.n[cell], options.exponent);
        rows.m[cell] = stepped(rows.m[cell], plain.m[cell], options.exponent);
        for (int64 k = 0; k < options.n_factors; ++k)
            p[k] = stepped(p[k], plain.p[cell * options.width + k], options.exponent);
        normalise(p, options.n_factors);
    }
    WAIT();
}

// All rounds of all groups. `rows` end as the last round began with them, `plain` after it.
KERNEL improve_rows(
    int64 n_groups, const int64 *order, const int64 *starts, const int64 *spot_of_group,
    const int64 *cell_indptr, const int *cell_genes, const float *cell_values,
    const int64 *spot_indptr, const int *spot_genes, const float *spot_values,
    double *p, double *n, double *m, double *plain_p, double *plain_n, double *plain_m,
    const double *table_cells, const double *table_spots, const double *rate_cells,
    const double *rate_spots, int64 width, int64 n_factors, int64 rounds, int64 exponent,
    const double *weights, double *sums, double *rates, double *losses, double *loading,
    double *spot_sums, double *totals, double *of_cells, double *of_spots
) {
    const counts_of cells = {cell_indptr, cell_genes, cell_values};
    const counts_of spots = {spot_indptr, spot_genes, spot_values};
    const rows_of rows = {p, n, m}, plain = {plain_p, plain_n, plain_m};
    const factors_of factors = {table_cells, table_spots, rate_cells, rate_spots};
    const options_of options = {width, n_factors, rounds, exponent, weights[0], weights[1]};
    const work_of work = {sums, rates, losses, loading, spot_sums, totals, of_cells, of_spots};
    FOR_EACH_GROUP(g, n_groups) {
        const int64 *members = order + starts[g];
        const int64 size = starts[g + 1] - starts[g], spot = spot_of_group[g];
        double *mine = totals + g * 7;
        if (FIRST_LANE) mine[LEAST] = INFINITE;
        WAIT();
        for (int64 number = 0; number < rounds; ++number) {
            for (int attempt = 0; attempt < 2; ++attempt) {
                explain(cells, spots, members, size, spot, g, rows, factors, options, work);
                judge(members, size, spot, attempt, options, losses, mine);
                const int accepted = mine[ACCEPTED] != 0.0;
                if (accepted) break;
                copy_rows(members, size, width, plain, rows);
            }
            update(members, size, spot, g, rows, factors, options, work, plain);
            if (number == rounds - 1) break;
            if (exponent == 1) copy_rows(members, size, width, plain, rows);
            else extrapolate(members, size, options, plain, rows);
        }
    }
}

// Sums over the non-zeros of a gene, in their order, of ratios times weights of their rows.
KERNEL sum_genes(
    int64 n_genes, int64 width, const int64 *gene_starts, const int64 *entries, const int64 *row,
    const double *ratios, const double *weights, double *out
) {
    FOR_EACH_ENTRY(position, n_genes * width) {
        const int64 gene = position / width, k = position % width;
        double total = 0.0;
        for (int64 at = gene_starts[gene]; at < gene_starts[gene + 1]; ++at) {
            const int64 e = entries[at];
            total += ratios[e] * weights[row[e] * width + k];
        }
        out[position] = total;
    }
}
