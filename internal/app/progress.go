package app

import "github.com/fewbit/fewbit/internal/pipeline"

// phases are the steps of a job with the share of the whole, 0..1, at which
// each begins: seconds of the news classifier with 1,000 texts to judge. A
// phase ends where the next begins.
var phases = []struct {
	name  string
	begin float64
}{
	{"open", 0},
	{"prepare", 0.01},
	{"calibrate", 0.02},
	{"choose ranges", 0.08},
	{"bias correction", 0.2},
	{"rewrite", 0.22},
	{"save", 0.23},
	{"evaluate", 0.24},
	{"measure memory", 0.95},
	{"publish", 0.98},
	{"load", progressLoad},
}

const progressLoad = 0.99

// overall turns the progress of each phase into that of the whole job.
func overall(progress func(phase string, frac float64)) pipeline.Progress {
	return func(phase string, frac float64) {
		for i, p := range phases {
			if p.name != phase {
				continue
			}
			end := 1.0
			if i+1 < len(phases) {
				end = phases[i+1].begin
			}
			progress(phase, p.begin+min(max(frac, 0), 1)*(end-p.begin))
			return
		}
		progress(phase, 0) // unknown: the share stays
	}
}
