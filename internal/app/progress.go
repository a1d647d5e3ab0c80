package app

import (
	"github.com/fewbit/fewbit/internal/pipeline"
	"github.com/fewbit/fewbit/internal/quant"
)

// step is a phase of a job, and the share of the whole, 0..1, at which it begins. A
// phase ends where the next begins.
type step struct {
	name  string
	begin float64
}

// phases are the steps of a job: seconds of the news classifier with 1,000 texts to judge.
var phases = []step{
	{"open", 0},
	{"prepare", 0.01},
	{"calibrate", 0.02},
	{"choose ranges", 0.08},
	{"weights", 0.14},
	{"bias correction", 0.2},
	{"rewrite", 0.22},
	{"save", 0.23},
	{"compare operators", 0.235},
	{"evaluate", 0.24},
	{"measure memory", 0.95},
	{"publish", 0.98},
	{"load", progressLoad},
}

// learning are the same of a job that learns blocks, which takes most of its time.
var learning = []step{
	{"open", 0},
	{"prepare", 0.01},
	{"calibrate", 0.02},
	{"choose ranges", 0.04},
	{"weights", 0.06},
	{"bias correction", 0.08},
	{"learn blocks", 0.1},
	{"rewrite", 0.8},
	{"save", 0.805},
	{"compare operators", 0.81},
	{"evaluate", 0.82},
	{"measure memory", 0.97},
	{"publish", 0.98},
	{"load", progressLoad},
}

// phasesOf are the steps of a job with weights found by w.
func phasesOf(w quant.WeightMethod) []step {
	if w == quant.BRECQ {
		return learning
	}
	return phases
}

const progressLoad = 0.99

// overall turns the progress of each phase into that of the whole job.
func overall(phases []step, progress func(phase string, frac float64)) pipeline.Progress {
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
