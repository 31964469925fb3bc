// Command contracts packs a folder of contracts for clients: it writes manifest.json, with the SHA-256 of each file, and beside the
// folder shop-contracts-VERSION.tar.gz. The same contracts are the same bytes, whenever and wherever they are packed.
//
//	contracts VERSION DIR
package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log"
	"os"
	"path"
	"path/filepath"
	"time"
)

func main() {
	log.SetFlags(0)
	log.SetPrefix("contracts: ")
	if len(os.Args) != 3 {
		log.Fatal("usage: contracts VERSION DIR")
	}
	if err := bundle(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func bundle(version, dir string) error {
	contracts := os.DirFS(dir)
	manifest := struct {
		Version string            `json:"version"`
		SHA256  map[string]string `json:"sha256"` // by the path of the file
	}{version, map[string]string{}}
	err := fs.WalkDir(contracts, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || name == "manifest.json" {
			return err
		}
		content, err := fs.ReadFile(contracts, name)
		sum := sha256.Sum256(content)
		manifest.SHA256[name] = hex.EncodeToString(sum[:])
		return err
	})
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(manifest, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "manifest.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	name := "shop-contracts-" + version
	archive, err := pack(contracts, name)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(filepath.Dir(filepath.Clean(dir)), name+".tar.gz"), archive, 0o644)
}

// pack returns a .tar.gz of the contracts in a folder of the name. Owners, times and modes of the files are not in it.
func pack(contracts fs.FS, name string) ([]byte, error) {
	var archive bytes.Buffer
	zip, err := gzip.NewWriterLevel(&archive, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	out := tar.NewWriter(zip)
	err = fs.WalkDir(contracts, ".", func(file string, entry fs.DirEntry, err error) error {
		header := tar.Header{Name: path.Join(name, file), ModTime: time.Unix(0, 0)}
		switch {
		case err != nil:
			return err
		case entry.IsDir():
			header.Typeflag, header.Name, header.Mode = tar.TypeDir, header.Name+"/", 0o755
			return out.WriteHeader(&header)
		}
		content, err := fs.ReadFile(contracts, file)
		if err != nil {
			return err
		}
		header.Typeflag, header.Size, header.Mode = tar.TypeReg, int64(len(content)), 0o644
		if err := out.WriteHeader(&header); err != nil {
			return err
		}
		_, err = out.Write(content)
		return err
	})
	if err := errors.Join(err, out.Close(), zip.Close()); err != nil {
		return nil, err
	}
	return archive.Bytes(), nil
}
