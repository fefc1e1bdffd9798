// C text of keyed_random.py, poisson_quantile.py and poisson_match.py.  Define COUNT, OUT and
// WEIGHT (element types) and OUT_MAXIMUM (largest value of OUT) when compiling.
#include "portable_math.cuh"

#define LARGE_MEAN 128.0
#define BULK 0.99999
#define LOG_TAIL (-11.512925464970229)
#define TAIL_DEVIATE 4.27
#define LOG_HALF (-0.6931471805599453)
#define LOG_TWO_PI 1.8378770664093453
#define EPSILON 5.5511151231257827e-17
#define MAXIMUM_MEAN 2147483648.0

enum { BAD_MEAN, NEGATIVE_COUNT, OVERFLOWED };

DEVICE uint64 mix(uint64 bits) {
    bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9ULL;
    bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBULL;
    return bits ^ (bits >> 31);
}

DEVICE double keyed_uniform(uint64 key, uint64 row) {
    const uint64 bits = mix(key ^ mix(row + 0x9E3779B97F4A7C15ULL));
    return double_of((int64)((bits >> 12) | 0x3FF0000000000000ULL)) - (1.0 - 1.1102230246251565e-16);
}

DEVICE double whole_part(double x) { return (double)(int64)x; }
DEVICE double larger(double a, double b) { return a > b ? a : b; }
DEVICE double smaller_of(double a, double b) { return a < b ? a : b; }

DEVICE double log_pmf(double x, double mean) {
    if (x == 0.0) return -mean;
    if (x < 16.0) {
        double factorial = 1.0;
        for (double factor = 2.0; factor <= x; factor += 1.0) factorial *= factor;
        return x * portable_log(mean) - mean - portable_log(factorial);
    }
    const double r = 1.0 / (x * x);
    double stirling = 1.0 / 1260 - r * (1.0 / 1680 - r * (1.0 / 1188 - r * (691.0 / 360360)));
    stirling = (1.0 / 12 - r * (1.0 / 360 - r * stirling)) / x;
    const double difference = x - mean;
    double deviance;
    if (fabs(difference) < 0.1 * (x + mean)) {
        const double v = difference / (x + mean);
        double term = 2.0 * x * v;
        deviance = difference * v;
        double previous = deviance + 1.0;
        for (double divisor = 3.0; deviance != previous; divisor += 2.0) {
            previous = deviance;
            term *= v * v;
            deviance += term / divisor;
        }
    } else {
        deviance = x * (portable_log(x) - portable_log(mean)) - difference;
    }
    return -deviance - stirling - 0.5 * (LOG_TWO_PI + portable_log(x));
}

DEVICE double below_ratio(double x, double mean) {
    double total = 0.0, term = 1.0;
    while (x > 0.0) {
        term *= x / mean;
        total += term;
        x -= 1.0;
        if (term <= EPSILON * total) break;
    }
    return total;
}

DEVICE double above_ratio(double x, double mean) {
    x += 1.0;
    double term = mean / x;
    double total = term;
    while (term > EPSILON * total) {
        x += 1.0;
        term *= mean / x;
        total += term;
    }
    return total;
}

DEVICE int reached(double x, double mean, double log_tail, int upper) {
    if (upper) return log_pmf(x, mean) + portable_log(above_ratio(x, mean)) <= log_tail;
    return log_pmf(x, mean) + portable_log(1.0 + below_ratio(x, mean)) >= log_tail;
}

DEVICE double tail_quantile(double guess, double mean, double log_tail, int upper) {
    const double middle = whole_part(mean);
    double high = upper ? larger(guess, middle) : smaller_of(guess, middle + 1.0);
    double low, step = 1.0;
    if (reached(high, mean, log_tail, upper)) {
        low = high - step;
        while (low >= 0.0 && reached(low, mean, log_tail, upper)) {
            high = low;
            step *= 2.0;
            low = high - step;
        }
        low = larger(low, -1.0);
    } else {
        low = high;
        high = low + step;
        while (!reached(high, mean, log_tail, upper)) {
            low = high;
            step *= 2.0;
            high = low + step;
        }
    }
    while (high - low > 1.0) {
        const double centre = whole_part((low + high) * 0.5);
        if (reached(centre, mean, log_tail, upper)) high = centre;
        else low = centre;
    }
    return high;
}

DEVICE double outlier_cap(double count, double target) {
    const double guess = whole_part(target + TAIL_DEVIATE * sqrt(target) + 2.0);
    return larger(count, tail_quantile(guess, target, LOG_TAIL, 1) + 1.0);
}

DEVICE double log_tail_of(double count, double source, double u, int upper) {
    if (upper) return log_pmf(count, source) + portable_log((1.0 - u) + above_ratio(count, source));
    return log_pmf(count, source) + portable_log(u + below_ratio(count, source));
}

DEVICE double match_tails(double count, double source, double target, double u, int cap) {
    if (target == 0.0) return 0.0;
    if (source == 0.0 && count > 0.0) return outlier_cap(count, target);
    int upper = count > source;
    double log_tail = log_tail_of(count, source, u, upper);
    if (log_tail > LOG_HALF) {
        upper = !upper;
        log_tail = log_tail_of(count, source, u, upper);
    }
    const double root = sqrt(target) + (sqrt(count + u) - sqrt(source + 0.5));
    const double guess = root > 0.0 ? whole_part(root * root) : 0.0;
    const double matched = tail_quantile(guess, target, log_tail, upper);
    if (cap && upper && log_tail < LOG_TAIL && matched > count)
        return smaller_of(matched, outlier_cap(count, target));
    return matched;
}

DEVICE double matched_count(double count, double source, double target, double u, int cap) {
    if (source == target) return count;
    if (source > LARGE_MEAN || target > LARGE_MEAN)
        return match_tails(count, source, target, u, cap);
    double probability = portable_exp(-source);
    double below = 0.0;
    for (double smaller = 0.0; smaller < count && below <= BULK;) {
        below += probability;
        smaller += 1.0;
        probability *= source / smaller;
    }
    const double q = below + u * probability;
    if (q > BULK) return match_tails(count, source, target, u, cap);
    double matched = 0.0;
    probability = portable_exp(-target);
    double cumulative = probability;
    while (cumulative < q) {
        matched += 1.0;
        probability *= target / matched;
        cumulative += probability;
    }
    return matched;
}

DEVICE void match_entry(int64 position, COUNT count, double source, double target, uint64 key,
                        uint64 row, int cap, OUT *out, int64 *status) {
    if (!(source >= 0.0 && source <= MAXIMUM_MEAN && target >= 0.0 && target <= MAXIMUM_MEAN)) {
        ATOMIC_MINIMUM(&status[BAD_MEAN], position);
        return;
    }
    const double u = keyed_uniform(key, row);
    out[position] = 0;
    const double observed = (double)count;
    if (observed == 0.0 && u <= 1.0 - (target - source)) return;
    if (observed < 0.0) {
        ATOMIC_MINIMUM(&status[NEGATIVE_COUNT], position);
        return;
    }
    const double matched = matched_count(observed, source, target, u, cap);
    if (matched <= OUT_MAXIMUM) out[position] = (OUT)matched;
    else ATOMIC_MINIMUM(&status[OVERFLOWED], position);
}

KERNEL match_soft(int64 n_cells, int64 n_genes, int64 n_clusters, const COUNT *counts,
                  const WEIGHT *weights, const int *batch, const double *source_depth,
                  const double *target_depth, const double *source_intercept,
                  const double *source_coefficients, const double *target_intercept,
                  const double *target_coefficients, const uint64 *keys, uint64 row_start,
                  int cap, OUT *out, int64 *status) {
    FOR_EACH_ENTRY(position, n_cells * n_genes) {
        const int64 i = position / n_genes, g = position % n_genes, b = batch[i];
        double source = source_intercept[b * n_genes + g];
        double target = target_intercept[g];
        for (int64 k = 0; k < n_clusters; ++k) {
            const double weight = (double)weights[i * n_clusters + k];
            source = source + weight * source_coefficients[(b * n_clusters + k) * n_genes + g];
            target = target + weight * target_coefficients[k * n_genes + g];
        }
        source = source_depth[i] * portable_exp(source);
        target = target_depth[i] * portable_exp(target);
        match_entry(position, counts[position], source, target, keys[g], row_start + (uint64)i,
                    cap, out, status);
    }
}

KERNEL match_labels(int64 n_cells, int64 n_genes, int64 n_labels, const COUNT *counts,
                    const int *labels, const int *batch, const double *source_depth,
                    const double *target_depth, const double *source_rate,
                    const double *target_rate, const uint64 *keys, uint64 row_start, int cap,
                    OUT *out, int64 *status) {
    FOR_EACH_ENTRY(position, n_cells * n_genes) {
        const int64 i = position / n_genes, g = position % n_genes, b = batch[i], l = labels[i];
        const double source = source_depth[i] * source_rate[(b * n_labels + l) * n_genes + g];
        const double target = target_depth[i] * target_rate[l * n_genes + g];
        match_entry(position, counts[position], source, target, keys[g], row_start + (uint64)i,
                    cap, out, status);
    }
}
