package http

import (
	"context"
	"net/http"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/engine"
)

// TextPair is one text, or two that are judged together.
type TextPair struct {
	Text, Pair string
	HasPair    bool
	// CutLeft: what is too long loses its beginning, not its end.
	CutLeft bool
}

// Texts is an optional ability of a Preparer: what the routes of OpenAI and of
// Text Embeddings Inference need of a model.
type Texts interface {
	TextPreparer
	// Encode makes one padded batch of texts, cut to MaxTokens, and says how
	// many tokens each has.
	Encode(texts []TextPair) (engine.Feeds, []int, error)
	// Tokens makes the batch of token ids, special ones included.
	Tokens(ids [][]int64) (engine.Feeds, []int, error)
	// Tokenize returns the ids of a text, whatever their number.
	Tokenize(text string, special bool) []int64
	// Token returns the text of an id, and whether it is a special one.
	Token(id int64) (text string, special bool)
	// Count returns the number of a text's tokens before it is cut.
	Count(t TextPair) int
	MaxTokens() int
	// Pooling names how tokens become a text's vector: mean, cls or max.
	Pooling() string
	// Embed makes one vector of each text of the model's outputs, not
	// normalized. Errors: engine.ErrModel when they are no embeddings.
	Embed(out engine.Feeds, lengths []int) ([][]float32, error)
}

// textModel finds the model that a request names, or the only one that takes
// texts when it names none, as servers of a single model are asked.
func (s *Server) textModel(ctx context.Context, name, version string) (Lease, Texts, error) {
	if name == "" {
		var err error
		if name, err = s.onlyTextModel(); err != nil {
			return nil, nil, err
		}
	}
	if err := checkName("model", name); err != nil {
		return nil, nil, err
	}
	lease, err := s.cfg.Models.Acquire(ctx, name, version)
	if err != nil {
		return nil, nil, err
	}
	prep, ok := lease.Preparer().(Texts)
	if !ok {
		lease.Release()
		return nil, nil, unablef("model %q takes no text: it was uploaded without tokenizer.json", name)
	}
	return lease, prep, nil
}

// onlyTextModel acquires none: whether a model is used decides whether it stays loaded.
func (s *Server) onlyTextModel() (string, error) {
	found := ""
	for _, m := range s.cfg.Models.List() {
		switch {
		case !m.Default || !m.Texts || m.State != StateReady && m.State != StateLoading && !m.Lazy:
		case found != "":
			return "", badf("several models take texts (%s, %s, ...): name one in the field \"model\"", found, m.Name)
		default:
			found = m.Name
		}
	}
	if found == "" {
		return "", failf(http.StatusNotFound, "no loaded model takes texts")
	}
	return found, nil
}

// checkTexts bounds the texts of a request; the engine is not asked about more.
func checkTexts(n int, text func(int) string) error {
	if n == 0 {
		return emptyf("there is no text")
	}
	if n > MaxTexts {
		return limitf("%d texts, at most %d are allowed in one request", n, MaxTexts)
	}
	for i := range n {
		t := text(i)
		if t == "" {
			return emptyf("text %d is empty", i)
		}
		if len(t) > MaxTextBytes {
			return limitf("text %d has %d bytes, expected 1 to %d", i, len(t), MaxTextBytes)
		}
	}
	return nil
}

// runTexts answers a request for texts: encode makes the feeds, use words the
// outputs.
func (s *Server) runTexts(c *gin.Context, lease Lease, encode func() (engine.Feeds, []int, error), use func(out engine.Feeds, lengths []int) error) error {
	return s.counted(c.Request.Context(), originOf(c), lease, func(m *modelStats, t *timing) error {
		t.route = routeOf(c)
		feeds, lengths, err := encode()
		if err != nil {
			return err
		}
		if err := checkTokens(feeds); err != nil {
			return err
		}
		ctx, cancel := context.WithDeadline(c.Request.Context(), t.arrival.Add(s.cfg.InferTimeout))
		defer cancel()
		return s.run(ctx, lease, m, feeds, nil, int64(len(lengths)), t, func(res engine.Result) error {
			return use(res.Tensors(), lengths)
		})
	})
}

// orTruncate is what else may be done about a text that is too long, where the API
// has the field.
const orTruncate = `, or let it be cut with "truncate": true`

// tooLong refuses the first text with more tokens than the model takes.
func tooLong(prep Texts, texts []TextPair, or string) error {
	for i, t := range texts {
		if n := prep.Count(t); n > prep.MaxTokens() {
			return limitf("text %d has %d tokens, the model takes %d: shorten it%s", i, n, prep.MaxTokens(), or)
		}
	}
	return nil
}
