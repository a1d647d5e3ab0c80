package http

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/engine"
)

type (
	classifyRequest struct {
		Model   string   `json:"model"`
		Version string   `json:"version,omitempty"`
		Text    string   `json:"text,omitempty" doc:"one text; or give texts"`
		Texts   []string `json:"texts,omitempty"`
	}
	classifyAnswer struct {
		Model   string           `json:"model_name"`
		Version string           `json:"model_version"`
		Results []classification `json:"results" doc:"one per text, in order"`
	}
	classification struct {
		Label  string       `json:"label" doc:"the label with the highest score"`
		Score  float64      `json:"score" doc:"0..1"`
		Scores []labelScore `json:"scores" doc:"all labels, highest first"`
	}
	labelScore struct {
		Label string  `json:"label"`
		Score float64 `json:"score"`
	}
)

// classify answers POST /v1/classify.
func (s *Server) classify(c *gin.Context) error {
	var req classifyRequest
	if err := s.decode(c, &req, false); err != nil {
		return err
	}
	if err := checkName("model", req.Model); err != nil {
		return err
	}
	if req.Version != "" {
		if err := checkName("version", req.Version); err != nil {
			return err
		}
	}
	texts := req.Texts
	switch {
	case req.Text != "" && texts != nil:
		return badf("give \"text\" or \"texts\", not both")
	case req.Text != "":
		texts = []string{req.Text}
	case len(texts) == 0:
		return badf("field \"text\" is missing or empty")
	case len(texts) > MaxTexts:
		return badf("field \"texts\" has %d texts, at most %d are allowed", len(texts), MaxTexts)
	}
	for i, t := range texts {
		if t == "" || len(t) > MaxTextBytes {
			return badf("text %d has %d bytes, expected 1 to %d", i, len(t), MaxTextBytes)
		}
	}
	lease, err := s.cfg.Models.Acquire(c.Request.Context(), req.Model, req.Version)
	if err != nil {
		return err
	}
	defer lease.Release()
	prep := lease.Preparer()
	if prep == nil {
		return badf("model %q takes no text: it was uploaded without tokenizer.json", req.Model)
	}
	labels := prep.Labels()
	if len(labels) == 0 {
		return badf("model %q is no classifier: it was uploaded without labels.txt", req.Model)
	}
	return s.counted(c.Request.Context(), progressOf(c).arrival, lease, func(m *modelStats, t *timing) error {
		t.route = routeOf(c)
		feeds, err := prep.Text(texts)
		if err != nil {
			return err
		}
		if err := checkTokens(feeds); err != nil {
			return err
		}
		ctx, cancel := context.WithDeadline(c.Request.Context(), t.arrival.Add(s.cfg.InferTimeout))
		defer cancel()
		return s.run(ctx, lease, m, feeds, nil, int64(len(texts)), t, func(res engine.Result) error {
			results, err := classifications(lease.Spec(), res.Tensors(), labels, len(texts))
			if err != nil {
				return err
			}
			return s.reply(c, http.StatusOK, classifyAnswer{lease.Name(), lease.Version(), results})
		})
	})
}

// classifications finds the model's scores, the first float output of shape
// [texts, labels], and words them.
func classifications(spec engine.IOSpec, out engine.Feeds, labels []string, texts int) ([]classification, error) {
	rows, err := scoreRows(spec, out, texts, len(labels))
	if err != nil {
		return nil, fmt.Errorf("%w of the model's labels", err)
	}
	results := make([]classification, texts)
	for i, row := range rows {
		if results[i], err = classificationOf(row, labels); err != nil {
			return nil, err
		}
	}
	return results, nil
}

// classificationOf turns one row of scores into probabilities. A row that is
// a distribution already (0..1, sum 1) stays; logits go through softmax.
func classificationOf(row []float32, labels []string) (classification, error) {
	sum, highest, distribution := 0.0, math.Inf(-1), true
	for _, v := range row {
		x := float64(v)
		if math.IsNaN(x) || math.IsInf(x, 0) {
			return classification{}, fmt.Errorf("%w: its scores are not finite", engine.ErrModel)
		}
		distribution = distribution && x >= 0 && x <= 1
		highest = max(highest, x)
		sum += x
	}
	const tolerance = 1e-3 // of a float32 softmax over thousands of labels
	distribution = distribution && math.Abs(sum-1) < tolerance
	scores := make([]labelScore, len(row))
	total := 0.0
	for i, v := range row {
		p := float64(v)
		if !distribution {
			p = math.Exp(p - highest)
		}
		total += p
		scores[i] = labelScore{labels[i], p}
	}
	for i := range scores {
		scores[i].Score /= total
	}
	slices.SortStableFunc(scores, func(a, b labelScore) int { return cmp.Compare(b.Score, a.Score) })
	return classification{scores[0].Label, scores[0].Score, scores}, nil
}
