package calib

import "runtime"

// CollectorOf returns a collector that holds what t holds, as if it had just
// observed it: what reads statistics of a run reads those of a file as well.
// The two share the statistics.
func CollectorOf(t *Table) *Collector {
	c := &Collector{stats: make(map[string]*Stats, len(t.Tensors)), slots: make(chan struct{}, runtime.GOMAXPROCS(0)), ids: append([]SampleID(nil), t.Samples...)}
	for name, s := range t.Tensors {
		c.stats[name] = s
	}
	return c
}
