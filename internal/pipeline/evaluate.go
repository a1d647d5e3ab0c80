package pipeline

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/fewbit/fewbit/internal/data"
	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/eval"
	"github.com/fewbit/fewbit/internal/graph"
	"github.com/fewbit/fewbit/internal/report"
)

// EvalRequest asks how well one model does on labelled data.
type EvalRequest struct {
	Model, Data string
	// Samples bounds the evaluation; 0 is all.
	Samples   int
	MaxTokens int
	// Assets is the folder of tokenizer.json and its like; "" is the model's.
	Assets string
	// Output names the output that holds the class scores; "" is the first.
	Output string
}

// EvalResult is what Evaluate found.
type EvalResult struct {
	Model   report.Model   `json:"model"`
	Machine report.Machine `json:"machine"`
	Data    string         `json:"data"`
	Labels  []string       `json:"labels,omitempty"` // names of the classes
	*eval.Evaluation
}

// Evaluate measures the accuracy of one model on labelled data.
func (p *Pipeline) Evaluate(ctx context.Context, req EvalRequest, progress Progress) (*EvalResult, error) {
	progress.say("open", 0)
	m, err := graph.Open(req.Model)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	ds, err := data.Open(req.Data, data.Options{Spec: SpecOf(m), ModelDir: assets(req.Assets, req.Model), MaxTokens: req.MaxTokens, Samples: req.Samples})
	if err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	defer ds.Close()
	if err := data.RequireLabels(ds); err != nil {
		return nil, fmt.Errorf("data %s: %w", filepath.Base(req.Data), err)
	}
	s, err := p.Engine.OpenFile(ctx, req.Model, engine.Options{Threads: p.Threads})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	res := &EvalResult{Model: modelFacts(m, filepath.Base(req.Model)), Machine: p.machine(ctx), Data: filepath.Base(req.Data), Labels: ds.LabelNames()}
	res.Evaluation, err = eval.Evaluate(ctx, s, ds, eval.Options{Output: req.Output, Progress: evalProgress(ds, progress)})
	if err != nil {
		return nil, fmt.Errorf("evaluate: %w", err)
	}
	return res, nil
}

func evalProgress(ds data.Dataset, progress Progress) func(int) {
	return func(done int) { progress.say("evaluate", float64(done)/float64(max(ds.Len(), done, 1))) }
}

func assets(dir, model string) string {
	if dir != "" {
		return dir
	}
	return filepath.Dir(model)
}

// checkEval finds out early whether the evaluation data can be opened at all.
func (r *run) checkEval() error {
	if r.req.Eval == "" {
		return nil
	}
	ds, err := r.openEval()
	if err != nil {
		return fmt.Errorf("evaluation data: %w", err)
	}
	return ds.Close()
}
