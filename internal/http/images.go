package http

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/engine"
)

// Limits of a request with images, beside that of its body.
const (
	// MaxImages bounds the images of one request.
	MaxImages = 32
	// maxFormFields bounds the parts of a form that are no images.
	maxFormFields = 8
	// maxFormField bounds one of them, in bytes.
	maxFormField = 1 << 10
)

// Images is an ability of a Preparer: encoded images to feeds.
type Images interface {
	Preparer
	// Image makes the feeds of one JPEG, PNG or WebP, batch dimension 1.
	Image(b []byte) (engine.Feeds, error)
	// Together makes one batch of the feeds of several. Errors: engine.ErrInput
	// when they differ in size, or the model takes one at a time.
	Together(feeds []engine.Feeds) (engine.Feeds, error)
}

// imageTypes are the media types of a body that is one image.
var imageTypes = []string{"image/jpeg", "image/jpg", "image/png", "image/webp"}

// readClassify reads a request of one of three forms: JSON, a form with files
// (multipart/form-data), or one image as the body, with the model in the query.
// The images share memory with body; held is what was charged for it.
func (s *Server) readClassify(c *gin.Context, body *buffer) (req classifyRequest, images [][]byte, held int64, err error) {
	err = s.readBody(c, body, 0, s.cfg.MaxInferBody, func(n int) error {
		held += int64(n)
		if s.bodies.Add(int64(n)) > MaxBodiesInFlight {
			return busyf("the server holds %d MiB of request bodies already; retry later", MaxBodiesInFlight>>20)
		}
		return nil
	})
	if err != nil {
		return req, nil, held, err
	}
	media, params, _ := mime.ParseMediaType(c.GetHeader("Content-Type"))
	switch {
	case media == "multipart/form-data":
		req, images, err = readForm(body.b, params["boundary"])
	case slices.Contains(imageTypes, media):
		images = [][]byte{body.b}
	case strings.HasPrefix(media, "image/"):
		err = failf(http.StatusUnsupportedMediaType, "images of type %s are not read: send JPEG, PNG or WebP", clip([]byte(media)))
	default:
		if len(body.b) == 0 {
			return req, nil, held, badf("the body is empty: expected a JSON object, a form with an image, or an image")
		}
		if err = decodeStrict(body.b, &req); err == nil {
			images, err = base64Images(req)
		}
		if err == nil && images == nil && len(body.b) > MaxJSONBody { // texts need no more
			err = &http.MaxBytesError{Limit: MaxJSONBody}
		}
	}
	if err != nil {
		return req, nil, held, err
	}
	if media == "multipart/form-data" || len(images) > 0 && req.Model == "" {
		query := func(v *string, name string) {
			if *v == "" {
				*v = c.Query(name)
			}
		}
		query(&req.Model, "model")
		query(&req.Version, "version")
	}
	if len(images) > MaxImages {
		err = badf("%d images, at most %d are allowed in one request", len(images), MaxImages)
	}
	return req, images, held, err
}

// base64Images decodes the images of a JSON request.
func base64Images(req classifyRequest) ([][]byte, error) {
	texts := req.Images
	switch {
	case req.Image != "" && texts != nil:
		return nil, badf("give \"image\" or \"images\", not both")
	case req.Image != "":
		texts = []string{req.Image}
	case texts != nil && len(texts) == 0:
		return nil, badf("field \"images\" is empty")
	case len(texts) > MaxImages:
		return nil, badf("field \"images\" has %d images, at most %d are allowed in one request", len(texts), MaxImages)
	}
	var images [][]byte
	for i, t := range texts {
		if rest, ok := strings.CutPrefix(t, "data:"); ok {
			head, data, found := strings.Cut(rest, ",")
			if !found || !strings.HasSuffix(head, ";base64") {
				return nil, badf("image %d is a data: URL without base64", i)
			}
			t = data
		}
		b, err := base64.StdEncoding.DecodeString(t)
		if err != nil || len(b) == 0 {
			return nil, badf("image %d is not base64, or empty", i)
		}
		images = append(images, b)
	}
	return images, nil
}

// readForm reads multipart/form-data: files are images, whatever their fields
// are called; "model" and "version" say who is asked.
func readForm(body []byte, boundary string) (req classifyRequest, images [][]byte, err error) {
	if boundary == "" {
		return req, nil, badf("the form has no boundary in its Content-Type")
	}
	r := multipart.NewReader(bytes.NewReader(body), boundary)
	fields := 0
	for {
		p, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return req, nil, badf("the form is damaged or cut off")
		}
		if p.FileName() != "" {
			if len(images) == MaxImages {
				return req, nil, badf("the form has more than %d images", MaxImages)
			}
			b, err := io.ReadAll(p)
			if err != nil || len(b) == 0 {
				return req, nil, badf("file %d of the form is empty or cut off", len(images))
			}
			images = append(images, b)
			continue
		}
		if fields++; fields > maxFormFields {
			return req, nil, badf("the form has more than %d fields", maxFormFields)
		}
		b, err := io.ReadAll(io.LimitReader(p, maxFormField+1))
		if err != nil || len(b) > maxFormField {
			return req, nil, badf("field %s of the form is cut off or has more than %d bytes; send images as files", clip([]byte(p.FormName())), maxFormField)
		}
		switch p.FormName() {
		case "model":
			req.Model = string(b)
		case "version":
			req.Version = string(b)
		default:
			return req, nil, badf("unknown field %s of the form, expected model, version, and images as files", clip([]byte(p.FormName())))
		}
	}
	if len(images) == 0 {
		return req, nil, badf("the form has no image: send one as a file, for example with curl -F image=@FILE")
	}
	return req, images, nil
}

// prepareImages decodes images one after the other. Decoding takes many times
// an image's bytes, so only so many requests do it at a time.
func (s *Server) prepareImages(ctx context.Context, prep Images, images [][]byte) (engine.Feeds, error) {
	select {
	case s.decoding <- struct{}{}:
		defer func() { <-s.decoding }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	feeds := make([]engine.Feeds, len(images))
	for i, b := range images {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var err error
		if feeds[i], err = prep.Image(b); err != nil {
			if len(images) > 1 {
				err = fmt.Errorf("image %d: %w", i, err)
			}
			return nil, err
		}
	}
	if len(feeds) == 1 {
		return feeds[0], nil
	}
	return prep.Together(feeds)
}
