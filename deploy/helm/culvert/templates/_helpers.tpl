{{/* The labels of everything of a program's; called with a dict of root and name. */}}
{{- define "culvert.labels" -}}
{{ include "culvert.selector" . }}
app.kubernetes.io/part-of: culvert
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{/* The labels by which a program's pods are found; they never change. */}}
{{- define "culvert.selector" -}}
app.kubernetes.io/name: {{ .name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{- define "culvert.image" -}}
{{ printf "%s/%s:%s" .root.Values.image.registry .name (.root.Values.image.tag | default .root.Chart.AppVersion) }}
{{- end }}

{{- define "culvert.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* How a node's programs reach control and prove themselves: never by an API permission, but by a token that is
     good for control alone. */}}
{{- define "culvert.nodeArgs" -}}
- --node=$(NODE_NAME)
- --control=https://control.{{ .Release.Namespace }}.svc:15010
- --control-ca=/var/run/culvert/ca/root-cert.pem
- --token-file=/var/run/culvert/token/token
{{- end }}

{{- define "culvert.nodeEnv" -}}
- name: NODE_NAME
  valueFrom:
    fieldRef:
      fieldPath: spec.nodeName
{{- end }}

{{- define "culvert.nodeMounts" -}}
- name: control-ca
  mountPath: /var/run/culvert/ca
  readOnly: true
- name: token
  mountPath: /var/run/culvert/token
  readOnly: true
{{- end }}

{{- define "culvert.nodeVolumes" -}}
# Written by control when it has its certificate authority; until then the pod waits.
- name: control-ca
  configMap:
    name: culvert-ca-root-cert
- name: token
  projected:
    # 0400, as a number that every reader of YAML takes for the same.
    defaultMode: 256
    sources:
      - serviceAccountToken:
          audience: istio-ca
          expirationSeconds: 3600
          path: token
{{- end }}

{{/* Every node, whatever keeps others off: a pod on a node without these programs cannot be enrolled. */}}
{{- define "culvert.everywhere" -}}
priorityClassName: system-node-critical
tolerations:
  - operator: Exists
{{- end }}

{{/* AppArmor's profile for containers forbids to read what /proc tells of others; called with the root. */}}
{{- define "culvert.noAppArmor" -}}
{{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}
appArmorProfile:
  type: Unconfined
{{- end }}
{{- end }}

{{- define "culvert.scrape" -}}
{{- if .root.Values.prometheus.scrape }}
prometheus.io/scrape: "true"
prometheus.io/port: {{ .port | quote }}
prometheus.io/path: /metrics
{{- end }}
{{- end }}
