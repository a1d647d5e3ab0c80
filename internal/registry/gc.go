package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fewbit/fewbit/internal/registry/lockfile"
)

// GC removes contents and views that no manifest names and that nobody has
// used for longer than grace. Publishing waits meanwhile; reading does not.
// A manifest that cannot be read ends it before anything is removed.
func (r *Registry) GC(ctx context.Context, grace time.Duration) error {
	l, err := lockfile.ExclusiveWait(r.path(gcLock))
	if err != nil {
		return err
	}
	defer l.Release()
	blobs, views := map[string]bool{}, map[string]bool{}
	ms, err := r.Models()
	if err != nil {
		return fmt.Errorf("collecting garbage: %w", err)
	}
	for _, m := range ms {
		for _, v := range m.Versions {
			for _, f := range v.Files {
				blobs[f.SHA256] = true
			}
			views[viewKey(v.Files)] = true
		}
	}
	ds, err := r.Datasets()
	if err != nil {
		return fmt.Errorf("collecting garbage: %w", err)
	}
	if r.o.Keep != nil {
		kept, err := r.o.Keep(ctx)
		if err != nil {
			return fmt.Errorf("collecting garbage: %w", err)
		}
		ds = append(ds, kept.Datasets...)
		for _, digest := range kept.Versions {
			views[digest] = true
		}
	}
	for _, d := range ds {
		blobs[d.SHA256] = true
		views[viewKey([]File{d.file()})] = true
		views[filepath.Base(r.imagesDir(d))] = true
	}
	before := time.Now().Add(-grace)
	shards, err := os.ReadDir(r.path(blobsDir))
	if err != nil {
		return noPath(err)
	}
	for _, s := range shards {
		if err := sweep(ctx, r.path(blobsDir, s.Name()), blobs, before, os.Remove); err != nil {
			return err
		}
	}
	return sweep(ctx, r.path(viewsDir), views, before, func(dir string) error {
		// Out of sight first: a view is whole or not there.
		dead, err := os.MkdirTemp(r.session, "dead-*")
		if err != nil {
			return err
		}
		if err := os.Rename(dir, filepath.Join(dead, "view")); err != nil {
			return err
		}
		return os.RemoveAll(dead)
	})
}

// sweep removes the entries of dir that are not in keep and older than before.
func sweep(ctx context.Context, dir string, keep map[string]bool, before time.Time, remove func(string) error) error {
	es, err := os.ReadDir(dir)
	if err != nil {
		return noPath(err)
	}
	for _, e := range es {
		if err := ctx.Err(); err != nil {
			return err
		}
		if keep[e.Name()] {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.ModTime().After(before) {
			continue
		}
		if err == nil {
			err = remove(filepath.Join(dir, e.Name()))
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return noPath(err)
		}
	}
	return nil
}

// Verify reads every published file again and returns an error that names the
// first whose contents do not have the digest they should.
func (r *Registry) Verify(ctx context.Context) error {
	check := func(what, digest string, size int64) error {
		got, n, err := digestFile(ctx, r.blobPath(digest))
		if err != nil {
			return fmt.Errorf("%s: %w", what, noPath(err))
		}
		if got != digest || n != size {
			return fmt.Errorf("%s: %w: its contents have changed on disk, restore it from a backup or delete the version", what, ErrInvalid)
		}
		return nil
	}
	ms, err := r.Models()
	if err != nil {
		return err
	}
	for _, m := range ms {
		for _, v := range m.Versions {
			for _, f := range v.Files {
				if err := check(fmt.Sprintf("file %s of version %d of model %s", f.Name, v.Number, m.Name), f.SHA256, f.Size); err != nil {
					return err
				}
			}
		}
	}
	ds, err := r.Datasets()
	if err != nil {
		return err
	}
	for _, d := range ds {
		if err := check("data set "+d.Name, d.SHA256, d.Size); err != nil {
			return err
		}
	}
	return nil
}
