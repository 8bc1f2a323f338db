package callers

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	optionsv1 "github.com/legation-io/legation/api/options/v1"
	"github.com/legation-io/legation/internal/fault"
)

// Row says who may call one method.
type Row struct {
	Callers []Class
	// Role an Operator needs besides; NoRole where roles do not apply.
	Role Role
	// Namespaced: the request names a namespace, so the role in any one
	// namespace opens the method and the handler checks the objects. Without
	// it the role must be granted in all namespaces.
	Namespaced bool
}

// Table is rows by full method name, e.g. "/legation.node.v1.Node/Renew".
type Table map[string]Row

// Matrix is every row there is. It does not change after New.
type Matrix struct {
	rows Table
}

// New makes the matrix from the services in files, whose methods must all
// carry the callers option, and the tables of foreign services. All mistakes
// are returned at once.
func New(files []protoreflect.FileDescriptor, foreign ...Table) (*Matrix, error) {
	m := &Matrix{rows: Table{}}
	var errs []error
	for _, file := range files {
		for i := range file.Services().Len() {
			methods := file.Services().Get(i).Methods()
			for j := range methods.Len() {
				name, row, err := rowOf(methods.Get(j))
				if err == nil {
					err = m.add(name, row)
				}
				errs = append(errs, err)
			}
		}
	}
	for _, table := range foreign {
		for _, name := range slices.Sorted(maps.Keys(table)) {
			errs = append(errs, m.add(name, table[name]))
		}
	}
	return m, errors.Join(errs...)
}

func (m *Matrix) add(name string, row Row) error {
	if _, taken := m.rows[name]; taken {
		return fmt.Errorf("%s has two rows in the caller matrix", name)
	}
	if len(row.Callers) == 0 {
		return fmt.Errorf("%s names no caller class; give it option (legation.options.v1.callers)", name)
	}
	for _, c := range row.Callers {
		if !slices.Contains(Classes, c) {
			return fmt.Errorf("%s admits the unknown caller class %d", name, c)
		}
	}
	if slices.Contains(row.Callers, Operator) && row.Role == NoRole {
		return fmt.Errorf("%s admits operators without a role; give it option (legation.options.v1.role)", name)
	}
	m.rows[name] = row
	return nil
}

func rowOf(method protoreflect.MethodDescriptor) (string, Row, error) {
	name := fmt.Sprintf("/%s/%s", method.Parent().FullName(), method.Name())
	options, ok := method.Options().(*descriptorpb.MethodOptions)
	if !ok {
		return name, Row{}, fmt.Errorf("%s has no options", name)
	}
	return name, Row{
		Callers:    proto.GetExtension(options, optionsv1.E_Callers).([]Class),
		Role:       proto.GetExtension(options, optionsv1.E_Role).(Role),
		Namespaced: method.Input().Fields().ByName("namespace") != nil,
	}, nil
}

// Check returns nil when the identity may call the method, else fault.Denied
// with what would be needed.
func (m *Matrix) Check(fullMethod string, i Identity) error {
	row, ok := m.rows[fullMethod]
	if !ok {
		return fault.New(fault.Denied, "%s has no row in the caller matrix: nobody may call it", fullMethod)
	}
	if !slices.Contains(row.Callers, i.Class) {
		next := ""
		if i.Class == Workload && slices.Contains(row.Callers, Operator) {
			next = "; bind it to a role under roles in the control plane's configuration"
		}
		return fault.New(fault.Denied, "%s may not call %s: it admits callers of class %s only%s", i, fullMethod, classNames(row.Callers), next)
	}
	if i.Class != Operator || i.May(row.Role, AllNamespaces) || row.Namespaced && i.mayAnywhere(row.Role) {
		return nil
	}
	where := " in all namespaces"
	if row.Namespaced {
		where = ""
	}
	return fault.New(fault.Denied, "%s may not call %s: it needs the role %s%s; bind it under roles in the control plane's configuration",
		i, fullMethod, roleName(row.Role), where)
}

func classNames(classes []Class) string {
	names := make([]string, len(classes))
	for n, c := range classes {
		names[n] = className(c)
	}
	return strings.Join(names, " or ")
}

// CheckRegistered returns an error that names every method a server has
// registered and the matrix lacks. Assemblies call it before they serve.
func (m *Matrix) CheckRegistered(services map[string]grpc.ServiceInfo) error {
	var missing []string
	for service, info := range services {
		for _, method := range info.Methods {
			if name := "/" + service + "/" + method.Name; m.rows[name].Callers == nil {
				missing = append(missing, name)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	return fmt.Errorf("no row in the caller matrix for %s", strings.Join(missing, ", "))
}

// Rows returns a copy of the matrix.
func (m *Matrix) Rows() Table { return maps.Clone(m.rows) }
