package data

import "slices"

// permutationSeed fixes the order in which samples are chosen. Changing it
// changes every calibration, so it never changes.
const permutationSeed = 0x66657762697400 // "fewbit"

// splitmix is the SplitMix64 generator (Steele, Lea and Flood, 2014).
type splitmix uint64

func (s *splitmix) next() uint64 {
	*s += 0x9e3779b97f4a7c15
	z := uint64(*s)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// choose returns, ascending, the samples skip .. skip+want of the fixed
// permutation of 0..n-1; want 0 is all that are left. It returns nil when that
// is every sample.
func choose(n, skip, want int) []int {
	if skip >= n {
		return []int{}
	}
	if want == 0 || want > n-skip {
		want = n - skip
	}
	if want == n {
		return nil
	}
	// Fisher-Yates from the front, remembering only the moved entries: the cost
	// is that of the samples chosen, or of those left out.
	moved := map[int]int{}
	at := func(i int) int {
		if v, ok := moved[i]; ok {
			return v
		}
		return i
	}
	rng := splitmix(permutationSeed ^ uint64(n))
	drawn := make([]int, 0, skip+want)
	stop := skip + want
	if stop == n {
		stop = skip // the rest is whatever was not drawn
	}
	for i := range stop {
		j := i + int(rng.next()%uint64(n-i))
		drawn = append(drawn, at(j))
		moved[j] = at(i)
		delete(moved, i)
	}
	if stop == skip {
		left := slices.Clone(drawn)
		slices.Sort(left)
		order := make([]int, 0, want)
		for i := range n {
			if len(left) > 0 && left[0] == i {
				left = left[1:]
				continue
			}
			order = append(order, i)
		}
		return order
	}
	order := drawn[skip:]
	slices.Sort(order)
	return order
}

// shard returns every shards-th sample of order (nil: 0..n-1), from i on.
func shard(order []int, n, i, shards int) []int {
	if order != nil {
		n = len(order)
	}
	out := make([]int, 0, n/shards+1)
	for ; i < n; i += shards {
		if order != nil {
			out = append(out, order[i])
		} else {
			out = append(out, i)
		}
	}
	return out
}
