package http

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/engine"
	"github.com/fewbit/fewbit/internal/registry"
)

// The routes of Text Embeddings Inference. It serves one model, so its requests
// name none; here a query parameter or field "model" may.

type (
	teiEmbedRequest struct {
		Model      string          `json:"model,omitempty" doc:"may be left out when one model takes texts"`
		Inputs     json.RawMessage `json:"inputs" doc:"a text, a list of texts, a list of token ids, or a list of such lists"`
		Normalize  *bool           `json:"normalize,omitempty" doc:"default true"`
		Truncate   bool            `json:"truncate,omitempty" doc:"cut texts that are too long instead of refusing them"`
		Direction  string          `json:"truncation_direction,omitempty" doc:"right (default) or left: which end is cut"`
		Dimensions int             `json:"dimensions,omitempty" doc:"keeps the first so many dimensions"`
	}
	teiPredictRequest struct {
		Model     string          `json:"model,omitempty" doc:"may be left out when one model takes texts"`
		Inputs    json.RawMessage `json:"inputs" doc:"a text, a pair of texts as a list of two, or a list of lists of one or two"`
		Truncate  bool            `json:"truncate,omitempty"`
		Direction string          `json:"truncation_direction,omitempty" doc:"right (default) or left: which end is cut"`
		Raw       bool            `json:"raw_scores,omitempty" doc:"the model's numbers instead of probabilities"`
	}
	teiScore struct {
		Score float64 `json:"score"`
		Label string  `json:"label"`
	}
	teiRerankRequest struct {
		Model     string   `json:"model,omitempty" doc:"may be left out when one model takes texts"`
		Query     string   `json:"query"`
		Texts     []string `json:"texts"`
		Truncate  bool     `json:"truncate,omitempty"`
		Direction string   `json:"truncation_direction,omitempty" doc:"right (default) or left: which end is cut"`
		Raw       bool     `json:"raw_scores,omitempty" doc:"the model's number instead of its sigmoid"`
		Return    bool     `json:"return_text,omitempty"`
	}
	teiRank struct {
		Index int     `json:"index"`
		Score float64 `json:"score"`
		Text  string  `json:"text,omitempty"`
	}
	teiInfo struct {
		ModelID      string         `json:"model_id"`
		ModelSHA     *string        `json:"model_sha"`
		DType        string         `json:"model_dtype"`
		Type         map[string]any `json:"model_type" doc:"embedding, classifier or reranker"`
		MaxRequests  int            `json:"max_concurrent_requests"`
		MaxLength    int            `json:"max_input_length"`
		MaxBatch     int            `json:"max_batch_tokens"`
		MaxRows      *int           `json:"max_batch_requests" doc:"null: bounded by tokens"`
		MaxClient    int            `json:"max_client_batch_size"`
		AutoTruncate bool           `json:"auto_truncate"`
		Workers      int            `json:"tokenization_workers"`
		Version      string         `json:"version"`
	}
	teiTokenizeRequest struct {
		Model   string          `json:"model,omitempty" doc:"may be left out when one model takes texts"`
		Inputs  json.RawMessage `json:"inputs" doc:"a text or a list of texts"`
		Special *bool           `json:"add_special_tokens,omitempty" doc:"default true"`
	}
	teiToken struct {
		ID      int64  `json:"id"`
		Text    string `json:"text"`
		Special bool   `json:"special"`
		Start   *int   `json:"start" doc:"null: where a token stands in its text is not told"`
		Stop    *int   `json:"stop"`
	}
)

type teiFailure struct {
	Error string `json:"error"`
	Type  string `json:"error_type"`
}

// teiError words errors as TEI's clients read them, with the statuses of its
// router: 400 for nothing, 413 for too much, 422 for what cannot be understood,
// 424 for the model's own failures, 429 when too much is waiting, 503 when the
// model is not there.
func (s *Server) teiError(h func(*gin.Context) error) func(*gin.Context) error {
	return s.worded(h, func(e *httpError, err error) any {
		kind := "Validation"
		switch {
		case e.kind == kindEmpty:
			kind = "Empty"
		case e.kind == kindUnable:
			e.status, kind = http.StatusFailedDependency, "Backend"
		case e.kind == kindLimit, e.status == http.StatusRequestEntityTooLarge:
			e.status = http.StatusRequestEntityTooLarge
		case e.status == http.StatusBadRequest:
			e.status = http.StatusUnprocessableEntity
		case e.status == http.StatusServiceUnavailable && (errors.Is(err, registry.ErrNotReady) || errors.Is(err, engine.ErrUnavailable)):
			kind = "Unhealthy"
		case e.status == http.StatusServiceUnavailable:
			e.status, kind = http.StatusTooManyRequests, "Overloaded"
		case e.status == http.StatusTooManyRequests:
			kind = "Overloaded"
		case e.status == http.StatusUnauthorized || e.status == http.StatusForbidden:
			kind = "Unauthorized"
		case e.status == http.StatusUnprocessableEntity || e.status == http.StatusInternalServerError:
			e.status, kind = http.StatusFailedDependency, "Backend"
		}
		return teiFailure{e.msg, kind}
	})
}

// cutLeft reads "truncation_direction".
func cutLeft(direction string) (bool, error) {
	switch strings.ToLower(direction) {
	case "", "right":
		return false, nil
	case "left":
		return true, nil
	}
	return false, badf("field \"truncation_direction\": expected \"right\" or \"left\", got %s", clip([]byte(direction)))
}

// teiModel is the model that a request names in its query or body; texts are
// marked for how they are cut.
func (s *Server) teiModel(c *gin.Context, field, direction string, texts []TextPair) (Lease, Texts, error) {
	left, err := cutLeft(direction)
	if err != nil {
		return nil, nil, err
	}
	for i := range texts {
		texts[i].CutLeft = left
	}
	return s.textModel(c.Request.Context(), cmp.Or(field, c.Query("model")), "")
}

// teiEmbed answers POST /embed.
func (s *Server) teiEmbed(c *gin.Context) error {
	var req teiEmbedRequest
	if err := s.decode(c, &req, false); err != nil {
		return err
	}
	texts, ids, err := readInput("inputs", req.Inputs)
	if err != nil {
		return err
	}
	lease, prep, err := s.teiModel(c, req.Model, req.Direction, texts)
	if err != nil {
		return err
	}
	defer lease.Release()
	encode := func() (engine.Feeds, []int, error) {
		if ids != nil {
			return prep.Tokens(ids)
		}
		if !req.Truncate {
			if err := tooLong(prep, texts, orTruncate); err != nil {
				return nil, nil, err
			}
		}
		return prep.Encode(texts)
	}
	return s.runTexts(c, lease, encode, func(out engine.Feeds, lengths []int) error {
		vectors, err := vectorsOf(prep, out, lengths, req.Normalize == nil || *req.Normalize, max(req.Dimensions, 0))
		if err != nil {
			return err
		}
		return s.reply(c, http.StatusOK, vectors)
	})
}

// teiPredict answers POST /predict: the labels of texts, or of pairs.
func (s *Server) teiPredict(c *gin.Context) error {
	var req teiPredictRequest
	if err := s.decode(c, &req, false); err != nil {
		return err
	}
	texts, single, err := readPairs(req.Inputs)
	if err != nil {
		return err
	}
	lease, prep, err := s.teiModel(c, req.Model, req.Direction, texts)
	if err != nil {
		return err
	}
	defer lease.Release()
	labels := prep.Labels()
	if len(labels) == 0 {
		return unablef("model %q is no classifier: it was uploaded without labels.txt", lease.Name())
	}
	return s.runTexts(c, lease, encoder(prep, texts, req.Truncate), func(out engine.Feeds, lengths []int) error {
		rows, err := scoreRows(lease.Spec(), out, len(lengths), len(labels), false)
		if err != nil {
			return err
		}
		ans := make([][]teiScore, len(rows))
		for i, row := range rows {
			r, err := classificationOf(row, labels)
			if err != nil {
				return err
			}
			for _, l := range r.Scores {
				score := l.Score
				if req.Raw {
					score = float64(row[slices.Index(labels, l.Label)])
				}
				ans[i] = append(ans[i], teiScore{score, l.Label})
			}
		}
		if single {
			return s.reply(c, http.StatusOK, ans[0])
		}
		return s.reply(c, http.StatusOK, ans)
	})
}

// teiRerank answers POST /rerank: texts by how well they answer the query, as a
// model with one score for a pair judges it.
func (s *Server) teiRerank(c *gin.Context) error {
	var req teiRerankRequest
	if err := s.decode(c, &req, false); err != nil {
		return err
	}
	if err := checkTexts(len(req.Texts), func(i int) string { return req.Texts[i] }); err != nil {
		return err
	}
	if err := checkTexts(1, func(int) string { return req.Query }); err != nil {
		return fmt.Errorf("field \"query\": %w", err)
	}
	pairs := make([]TextPair, len(req.Texts))
	for i, t := range req.Texts {
		pairs[i] = TextPair{Text: req.Query, Pair: t, HasPair: true}
	}
	lease, prep, err := s.teiModel(c, req.Model, req.Direction, pairs)
	if err != nil {
		return err
	}
	defer lease.Release()
	return s.runTexts(c, lease, encoder(prep, pairs, req.Truncate), func(out engine.Feeds, lengths []int) error {
		rows, err := scoreRows(lease.Spec(), out, len(lengths), 1, false)
		if err != nil {
			return unablef("model %q is no reranker: it does not give one score for a pair of texts", lease.Name())
		}
		ans := make([]teiRank, len(rows))
		for i, row := range rows {
			x := float64(row[0])
			if math.IsNaN(x) || math.IsInf(x, 0) {
				return fmt.Errorf("%w: its scores are not finite", engine.ErrModel)
			}
			if !req.Raw {
				x = 1 / (1 + math.Exp(-x))
			}
			ans[i] = teiRank{Index: i, Score: x}
			if req.Return {
				ans[i].Text = req.Texts[i]
			}
		}
		slices.SortStableFunc(ans, func(a, b teiRank) int { return cmp.Compare(b.Score, a.Score) })
		return s.reply(c, http.StatusOK, ans)
	})
}

// teiTokenize answers POST /tokenize with the ids of each text.
func (s *Server) teiTokenize(c *gin.Context) error {
	var req teiTokenizeRequest
	if err := s.decode(c, &req, false); err != nil {
		return err
	}
	texts, ids, err := readInput("inputs", req.Inputs)
	if err != nil {
		return err
	}
	if ids != nil {
		return badf("field \"inputs\": expected a text or a list of texts")
	}
	lease, prep, err := s.teiModel(c, req.Model, "", nil)
	if err != nil {
		return err
	}
	defer lease.Release()
	ans := make([][]teiToken, len(texts))
	for i, t := range texts {
		ans[i] = []teiToken{}
		for _, id := range prep.Tokenize(t.Text, req.Special == nil || *req.Special) {
			text, special := prep.Token(id)
			ans[i] = append(ans[i], teiToken{ID: id, Text: text, Special: special})
		}
	}
	return s.reply(c, http.StatusOK, ans)
}

// teiInfo answers GET /info.
func (s *Server) teiInfo(c *gin.Context) error {
	lease, prep, err := s.teiModel(c, "", "", nil)
	if err != nil {
		return err
	}
	defer lease.Release()
	info := teiInfo{ModelID: lease.Name(), DType: "float32", MaxRequests: s.cfg.MaxInFlight, MaxLength: prep.MaxTokens(),
		MaxBatch: MaxTokens, MaxClient: MaxTexts, Workers: engine.AvailableCPUs(), Version: s.cfg.Version}
	byID, ids := map[string]string{}, map[string]int{}
	for i, l := range prep.Labels() {
		byID[fmt.Sprint(i)], ids[l] = l, i
	}
	what := map[string]any{"id2label": byID, "label2id": ids}
	switch {
	case len(ids) > 0:
		info.Type = map[string]any{"classifier": what}
	case slices.ContainsFunc(lease.Spec().Outputs, func(io engine.IO) bool { return io.Type.IsFloat() && len(io.Dims) == 2 && io.Dims[1] == 1 }):
		info.Type = map[string]any{"reranker": what}
	default:
		info.Type = map[string]any{"embedding": map[string]any{"pooling": prep.Pooling()}}
	}
	return s.reply(c, http.StatusOK, info)
}

func encoder(prep Texts, texts []TextPair, truncate bool) func() (engine.Feeds, []int, error) {
	return func() (engine.Feeds, []int, error) {
		if !truncate {
			if err := tooLong(prep, texts, orTruncate); err != nil {
				return nil, nil, err
			}
		}
		return prep.Encode(texts)
	}
}

// readPairs reads what /predict takes; single says that the answer is one text's.
func readPairs(raw json.RawMessage) (texts []TextPair, single bool, err error) {
	var one string
	var pair []string
	var many [][]string
	switch {
	case len(raw) == 0:
		return nil, false, badf("field \"inputs\" is missing")
	case json.Unmarshal(raw, &one) == nil:
		many, single = [][]string{{one}}, true
	case json.Unmarshal(raw, &pair) == nil:
		many, single = [][]string{pair}, true
	case json.Unmarshal(raw, &many) == nil:
	default:
		return nil, false, badf("field \"inputs\": expected a text, a pair of texts, or a list of lists of one or two texts")
	}
	if len(many) > MaxTexts {
		return nil, false, limitf("%d texts, at most %d are allowed in one request", len(many), MaxTexts)
	}
	for i, m := range many {
		if len(m) == 0 {
			return nil, false, emptyf("input %d has no text", i)
		}
		if len(m) > 2 {
			return nil, false, badf("input %d has %d texts, expected one or two", i, len(m))
		}
		if err := checkTexts(len(m), func(j int) string { return m[j] }); err != nil {
			return nil, false, err
		}
		t := TextPair{Text: m[0], HasPair: len(m) == 2}
		if t.HasPair {
			t.Pair = m[1]
		}
		texts = append(texts, t)
	}
	if len(texts) == 0 {
		return nil, false, emptyf("there is no text")
	}
	return texts, single, nil
}

// scoreRows returns the rows of the first float output of shape [rows, n]; when
// flat is set, dimensions of 1 may follow.
func scoreRows(spec engine.IOSpec, out engine.Feeds, rows, n int, flat bool) ([][]float32, error) {
	for _, io := range spec.Outputs {
		t := out[io.Name]
		if t == nil || !t.Type.IsFloat() || len(t.Dims) < 2 || len(t.Dims) > 2 && !flat || t.Dims[0] != int64(rows) || t.Dims[1] != int64(n) || t.Len() != int64(rows)*int64(n) {
			continue
		}
		x, err := t.F32()
		if err != nil {
			return nil, err
		}
		return slices.Collect(slices.Chunk(x, n)), nil
	}
	return nil, fmt.Errorf("%w: no float output has the shape [samples, %d]", engine.ErrModel, n)
}
