package run

import (
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"

	"github.com/legation-io/legation/internal/fault"
)

// account is whom the program runs as.
type account struct {
	credential syscall.Credential
	env        []string
}

// lookUp reads NAME or UID[:GID]. A user that the machine knows brings his
// groups, unless a group is given: then it is the only one.
func lookUp(spec string) (*account, error) {
	name, group, alone := strings.Cut(spec, ":")
	u, err := user.Lookup(name)
	uid, number := parseID(name)
	if err != nil && number {
		if u, err = user.LookupId(name); err != nil {
			u = nil
		}
	}
	switch {
	case u != nil:
		uid, _ = parseID(u.Uid)
	case !number:
		return nil, fault.New(fault.Invalid, "--user %q: no such user, and no number", name)
	}
	a := &account{credential: syscall.Credential{Uid: uid, Gid: uid}}
	if u != nil {
		a.credential.Gid, _ = parseID(u.Gid)
		a.env = []string{"HOME=" + u.HomeDir, "USER=" + u.Username, "LOGNAME=" + u.Username}
	}
	if alone {
		if a.credential.Gid, number = parseID(group); !number {
			return nil, fault.New(fault.Invalid, "--user %q: the group is not a number", spec)
		}
		return a, nil
	}
	if u != nil {
		ids, err := u.GroupIds()
		if err != nil {
			return nil, fault.New(fault.Invalid, "--user %q: its groups: %w", spec, err)
		}
		for _, id := range ids {
			if gid, ok := parseID(id); ok {
				a.credential.Groups = append(a.credential.Groups, gid)
			}
		}
	}
	return a, nil
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != 1<<32-1 // -1 means "leave it" to the kernel
}

// account says whom the program runs as; nil is who runs this.
func (o *Options) account() (*account, error) {
	if o.User == "" {
		return nil, nil
	}
	if os.Geteuid() != 0 {
		return nil, fault.New(fault.Denied, "--user %s: only root can run a program as another user", o.User)
	}
	a, err := lookUp(o.User)
	if err != nil {
		return nil, err
	}
	if a.credential.Uid == o.envoyUID() {
		return nil, fault.New(fault.Invalid, "--user %s: uid %d is the proxy's own; a program with it could take the proxy's key. Choose another, or another --envoy-uid", o.User, a.credential.Uid)
	}
	return a, nil
}

// environment of the program: a variable that is set again counts as set last.
func (a *account) environment(env []string) []string {
	if a == nil {
		return env
	}
	return append(env, a.env...)
}
