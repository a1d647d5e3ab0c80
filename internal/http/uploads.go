package http

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/fewbit/fewbit/internal/registry"
)

// Answers of the upload routes.
type (
	modelUploaded struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	modelVersions struct {
		Name     string        `json:"name"`
		Versions []VersionInfo `json:"versions"`
	}
	datasetList struct {
		Datasets []DatasetInfo `json:"datasets"`
	}
	modelIndex struct {
		Models []ModelInfo `json:"models"`
	}
	promoteRequest struct {
		Version string `json:"version" doc:"the version to make the default"`
	}
)

func (s *Server) store() (Store, error) {
	if s.cfg.Store == nil {
		return nil, failf(http.StatusNotImplemented, "this server stores no uploads")
	}
	return s.cfg.Store, nil
}

// storeAnd returns the store and the checked name in the path.
func (s *Server) storeAnd(c *gin.Context, kind string) (Store, string, error) {
	name, err := pathName(c, kind, kind)
	if err != nil {
		return nil, "", err
	}
	st, err := s.store()
	return st, name, err
}

// uploadReader streams a body to a store. Every part that arrives moves the
// deadline, so a large upload may take its time and a silent one may not.
type uploadReader struct {
	r       io.Reader
	ctl     *http.ResponseController
	patient time.Duration
	coding  string
	err     error // what the client did wrong, for the answer
}

func (u *uploadReader) Read(p []byte) (int, error) {
	_ = u.ctl.SetReadDeadline(time.Now().Add(u.patient))
	n, err := u.r.Read(p)
	if errors.Is(err, io.EOF) {
		_ = u.ctl.SetReadDeadline(time.Time{}) // checking the upload may take longer
	} else if err != nil {
		err = codingError(err, u.coding)
		u.err = err
	}
	return n, err
}

// upload hands the request's decoded body to put. Errors of the body come
// before put's own, which wrap them in whatever way.
func (s *Server) upload(c *gin.Context, put func(io.Reader) error) error {
	req := c.Request
	if req.ContentLength > s.cfg.MaxUpload {
		return &http.MaxBytesError{Limit: s.cfg.MaxUpload}
	}
	if req.ContentLength == 0 {
		return badf("the body is empty: send the file as the request's body, for example with curl --upload-file FILE")
	}
	coding, err := requestCoding(req)
	if err != nil {
		return err
	}
	u := &uploadReader{ctl: http.NewResponseController(c.Writer), patient: s.cfg.BodyTimeout, coding: coding}
	u.r = http.MaxBytesReader(nil, req.Body, s.cfg.MaxUpload)
	r, free := io.Reader(u), func() {}
	if coding != "" {
		// The decoder reads through u for the deadline; a second one around it
		// words the decoder's errors and bounds what it makes.
		inner, release, err := decoder(u, coding)
		if err != nil {
			return codingError(err, coding)
		}
		free = release
		r = &uploadReader{r: http.MaxBytesReader(nil, io.NopCloser(inner), s.cfg.MaxUpload), ctl: u.ctl, patient: u.patient, coding: coding}
	}
	defer free()
	err = put(r)
	if outer, ok := r.(*uploadReader); ok && outer.err != nil {
		return outer.err
	}
	return err
}

// declaredSize is the length of the upload where the client says it, else -1,
// so that a store without room refuses before the first byte.
func declaredSize(r *http.Request) int64 {
	if r.Header.Get("Content-Encoding") != "" {
		return -1
	}
	return r.ContentLength
}

func (s *Server) putModel(c *gin.Context) error {
	st, name, err := s.storeAnd(c, "model")
	if err != nil {
		return err
	}
	var version string
	err = s.upload(c, func(r io.Reader) (err error) {
		version, err = st.PutModel(c.Request.Context(), name, r, declaredSize(c.Request))
		return err
	})
	if err != nil {
		return err
	}
	c.Header("Location", "/v2/models/"+name+"/versions/"+version)
	return s.reply(c, http.StatusCreated, modelUploaded{name, version})
}

func (s *Server) modelIndex(c *gin.Context) error {
	infos := s.cfg.Models.List()
	if infos == nil {
		infos = []ModelInfo{}
	}
	return s.reply(c, http.StatusOK, modelIndex{infos})
}

func (s *Server) modelVersions(c *gin.Context) error {
	st, name, err := s.storeAnd(c, "model")
	if err != nil {
		return err
	}
	vs, err := st.Versions(c.Request.Context(), name)
	if err != nil {
		return err
	}
	return s.reply(c, http.StatusOK, modelVersions{name, vs})
}

// deleteModel removes one version, or with no version in the path the whole
// model.
func (s *Server) deleteModel(c *gin.Context) error {
	st, name, err := s.storeAnd(c, "model")
	if err != nil {
		return err
	}
	version := c.Param("version")
	if version != "" {
		if err := checkName("version", version); err != nil {
			return err
		}
	}
	if err := st.Delete(c.Request.Context(), name, version); err != nil {
		return err
	}
	if version == "" {
		s.cfg.Trace.Forget(name)
	}
	return s.noContent(c)
}

func (s *Server) promote(c *gin.Context) error {
	st, name, err := s.storeAnd(c, "model")
	if err != nil {
		return err
	}
	var req promoteRequest
	if err := s.decode(c, &req, false); err != nil {
		return err
	}
	if err := checkName("version", req.Version); err != nil {
		return err
	}
	if err := st.Promote(c.Request.Context(), name, req.Version); err != nil {
		return err
	}
	return s.reply(c, http.StatusOK, modelUploaded{name, req.Version})
}

func (s *Server) rollback(c *gin.Context) error {
	st, name, err := s.storeAnd(c, "model")
	if err != nil {
		return err
	}
	if err := s.decode(c, &struct{}{}, true); err != nil {
		return err
	}
	version, err := st.Rollback(c.Request.Context(), name)
	if err != nil {
		return err
	}
	return s.reply(c, http.StatusOK, modelUploaded{name, version})
}

func (s *Server) putDataset(c *gin.Context) error {
	st, name, err := s.storeAnd(c, "dataset")
	if err != nil {
		return err
	}
	var info DatasetInfo
	err = s.upload(c, func(r io.Reader) (err error) {
		info, err = st.PutDataset(c.Request.Context(), name, r, c.ContentType(), declaredSize(c.Request))
		return err
	})
	if err != nil {
		return err
	}
	c.Header("Location", "/datasets/"+name)
	return s.reply(c, http.StatusCreated, info)
}

func (s *Server) datasetIndex(c *gin.Context) error {
	st, err := s.store()
	if err != nil {
		return err
	}
	ds, err := st.Datasets()
	if err != nil {
		return err
	}
	if ds == nil {
		ds = []DatasetInfo{}
	}
	return s.reply(c, http.StatusOK, datasetList{ds})
}

// dataset returns one stored dataset.
func (s *Server) dataset(name string) (DatasetInfo, error) {
	ds, err := s.cfg.Store.Datasets()
	if err != nil {
		return DatasetInfo{}, err
	}
	for _, d := range ds {
		if d.Name == name {
			return d, nil
		}
	}
	return DatasetInfo{}, fmt.Errorf("%w: there is no dataset %q", registry.ErrNotFound, name)
}

func (s *Server) getDataset(c *gin.Context) error {
	_, name, err := s.storeAnd(c, "dataset")
	if err != nil {
		return err
	}
	d, err := s.dataset(name)
	if err != nil {
		return err
	}
	return s.reply(c, http.StatusOK, d)
}

func (s *Server) deleteDataset(c *gin.Context) error {
	st, name, err := s.storeAnd(c, "dataset")
	if err != nil {
		return err
	}
	if err := st.DeleteDataset(c.Request.Context(), name); err != nil {
		return err
	}
	return s.noContent(c)
}
