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
		Text    string   `json:"text,omitempty" doc:"one text; or give texts, image or images"`
		Texts   []string `json:"texts,omitempty"`
		Image   string   `json:"image,omitempty" doc:"one JPEG, PNG or WebP as base64, or as a data: URL"`
		Images  []string `json:"images,omitempty"`
		Top     int      `json:"top,omitempty" doc:"how many labels to answer with; 0 is all"`
	}
	classifyAnswer struct {
		Model   string           `json:"model_name"`
		Version string           `json:"model_version"`
		Results []classification `json:"results" doc:"one per text or image, in order"`
	}
	classification struct {
		Label  string       `json:"label" doc:"the label with the highest score"`
		Score  float64      `json:"score" doc:"0..1"`
		Scores []labelScore `json:"scores" doc:"the labels, highest first"`
	}
	labelScore struct {
		Label string  `json:"label"`
		Score float64 `json:"score"`
	}
)

// classify answers POST /v1/classify, of texts or of images.
func (s *Server) classify(c *gin.Context) error {
	body := getBuffer()
	defer body.free()
	req, images, held, err := s.readClassify(c, body)
	defer func() { s.Free(held) }()
	if err != nil {
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
	if req.Top < 0 {
		return badf("field \"top\" is negative")
	}
	texts, err := classifyTexts(req, images)
	if err != nil {
		return err
	}
	lease, err := s.cfg.Models.Acquire(c.Request.Context(), req.Model, req.Version)
	if err != nil {
		return err
	}
	defer lease.Release()
	prepare, err := s.classifier(lease, texts, images)
	if err != nil {
		return err
	}
	labels := lease.Preparer().Labels()
	if len(labels) == 0 {
		return badf("model %q is no classifier: it was uploaded without labels.txt", req.Model)
	}
	n := max(len(texts), len(images))
	return s.counted(c.Request.Context(), originOf(c), lease, func(m *modelStats, t *timing) error {
		t.route = routeOf(c)
		ctx, cancel := context.WithDeadline(c.Request.Context(), t.arrival.Add(s.cfg.InferTimeout))
		defer cancel()
		feeds, err := prepare(ctx)
		if err != nil {
			return err
		}
		if err := checkTokens(feeds); err != nil {
			return err
		}
		return s.run(ctx, lease, m, feeds, nil, int64(n), t, func(res engine.Result) error {
			results, err := classifications(lease.Spec(), res.Tensors(), labels, n, len(images) > 0)
			if err != nil {
				return err
			}
			for i := range results {
				if scores := results[i].Scores; req.Top > 0 && req.Top < len(scores) {
					results[i].Scores = scores[:req.Top]
				}
			}
			return s.reply(c, http.StatusOK, classifyAnswer{lease.Name(), lease.Version(), results})
		})
	})
}

// classifyTexts returns the texts of a request that has no images.
func classifyTexts(req classifyRequest, images [][]byte) ([]string, error) {
	texts := req.Texts
	switch {
	case len(images) > 0 && (req.Text != "" || texts != nil):
		return nil, badf("give texts or images, not both")
	case len(images) > 0:
		return nil, nil
	case req.Text != "" && texts != nil:
		return nil, badf("give \"text\" or \"texts\", not both")
	case req.Text != "":
		texts = []string{req.Text}
	case len(texts) == 0:
		return nil, badf("field \"text\" is missing or empty; give it, \"texts\", \"image\" or \"images\"")
	case len(texts) > MaxTexts:
		return nil, badf("field \"texts\" has %d texts, at most %d are allowed", len(texts), MaxTexts)
	}
	for i, t := range texts {
		if t == "" || len(t) > MaxTextBytes {
			return nil, badf("text %d has %d bytes, expected 1 to %d", i, len(t), MaxTextBytes)
		}
	}
	return texts, nil
}

// classifier returns what makes the model's inputs of texts or of images.
func (s *Server) classifier(lease Lease, texts []string, images [][]byte) (func(context.Context) (engine.Feeds, error), error) {
	if len(images) > 0 {
		prep, ok := lease.Preparer().(Images)
		if !ok {
			return nil, badf("model %q takes no images: its input is not [batch, 3, height, width] of a known size, or it was uploaded without preprocessor_config.json", lease.Name())
		}
		return func(ctx context.Context) (engine.Feeds, error) { return s.prepareImages(ctx, prep, images) }, nil
	}
	prep, ok := lease.Preparer().(TextPreparer)
	if !ok {
		return nil, badf("model %q takes no text: it was uploaded without tokenizer.json", lease.Name())
	}
	return func(context.Context) (engine.Feeds, error) { return prep.Text(texts) }, nil
}

// classifications finds the model's scores and words them: the first float
// output of shape [samples, labels], of images with dimensions of 1 behind too.
func classifications(spec engine.IOSpec, out engine.Feeds, labels []string, samples int, flat bool) ([]classification, error) {
	rows, err := scoreRows(spec, out, samples, len(labels), flat)
	if err != nil {
		return nil, fmt.Errorf("%w of the model's labels", err)
	}
	results := make([]classification, samples)
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
