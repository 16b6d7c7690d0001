{{- define "readapt.name" -}}
{{- printf "%s-operator" .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "readapt.selector" -}}
app.kubernetes.io/name: readapt-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "readapt.labels" -}}
{{ include "readapt.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* What the operator may do with the objects of users: the same for a Role and for the ClusterRole. */}}
{{- define "readapt.rules" -}}
- apiGroups: [readapt.dev]
  resources: [basemodels, loraadapters]
  verbs: [get, list, watch]
- apiGroups: [readapt.dev]
  resources: [basemodels/status, loraadapters/status]
  verbs: [get, patch, update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, update]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# How far a running Job is.
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [events]
  verbs: [create, patch]
# Owner references with blockOwnerDeletion need this where OwnerReferencesPermissionEnforcement is on.
- apiGroups: [readapt.dev]
  resources: [basemodels/finalizers, loraadapters/finalizers]
  verbs: [update]
{{- end -}}
