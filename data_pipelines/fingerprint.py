import cv2
import numpy as np

ALIKE = 3


def fingerprint(frames):
  f = frames[len(frames) // 2]
  g = cv2.resize(
    cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA
  ).astype(np.float32)
  d = cv2.dct(g)[:8, :8].ravel()
  return int(sum(1 << i for i, b in enumerate(d > np.median(d)) if b))
