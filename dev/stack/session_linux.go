package stack

import (
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// asUser makes a process run as the user, in a session of its own. If the user may not pass through a folder above dir
// (a clone under /root), the process keeps the one capability it needs for that.
func asUser(u *user.User, dir string) (*syscall.SysProcAttr, error) {
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, fmt.Errorf("reading the id of user %s: %w", u.Username, err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return nil, fmt.Errorf("reading the group of user %s: %w", u.Username, err)
	}
	attr := ownSession()
	attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	for above := filepath.Dir(dir); ; above = filepath.Dir(above) {
		info, err := os.Stat(above)
		if err != nil {
			return nil, fmt.Errorf("looking at %s: %w", above, err)
		}
		if info.Mode()&0o001 == 0 {
			attr.AmbientCaps = traverse()
			return attr, nil
		}
		if above == filepath.Dir(above) {
			return attr, nil
		}
	}
}

// traverse is the smallest capability of ours that opens folders: containers often lack the smaller one.
func traverse() []uintptr {
	const dacOverride, dacReadSearch = 1, 2
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		mask, found := strings.CutPrefix(line, "CapPrm:")
		if !found {
			continue
		}
		permitted, _ := strconv.ParseUint(strings.TrimSpace(mask), 16, 64)
		for _, capability := range []uintptr{dacReadSearch, dacOverride} {
			if permitted&(1<<capability) != 0 {
				return []uintptr{capability}
			}
		}
	}
	return nil
}
